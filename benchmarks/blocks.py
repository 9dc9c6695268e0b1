"""One RepVGG block, 64 to 64 channels on 64x64, eager: with its branches, switched, and YOLO's plain convolution.

    python benchmarks/blocks.py

Writes benchmarks/results/blocks.json and blocks.png. Run it on a machine that does nothing else.
"""

from __future__ import annotations

from benchmark import record

if __name__ == "__main__":
    record("blocks", ["repvgg"], batches=[1, 8, 16], channels=64, description=__doc__)
