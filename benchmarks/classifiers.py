"""RepVGG-A0 with its branches and deployed, beside torchvision's ResNet-18, SqueezeNet 1.1 and ResNet-50, folded too.

    python benchmarks/classifiers.py

All are timed in the same rounds, with random weights. Writes benchmarks/results/classifiers.json and classifiers.png.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

from benchmark import record

OTHERS = ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:resnet50"]

if __name__ == "__main__":
    record("classifiers", ["repvgg-a0.yaml"], beside=OTHERS, batches=[1, 8], sizes=[224], description=__doc__)
