"""yolov5s-rep with its branches, deployed, and stock YOLOv5s, through each one's own fuse().

    python benchmarks/fps.py

Writes benchmarks/results/fps.json and fps.png. Run it on a machine that does nothing else.
"""

from __future__ import annotations

from benchmark import record

if __name__ == "__main__":
    record("fps", ["yolov5s-rep.yaml"], batches=[1, 8], sizes=[320, 640], description=__doc__)
