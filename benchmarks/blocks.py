"""One RepVGG block, 64 to 64 channels on 64x64, eager: with its branches, switched, and YOLO's plain convolution.

    python benchmarks/blocks.py
    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python benchmarks/blocks.py --name blocks-kept

The first run frees and asks for memory as the C library does by itself; in the second, glibc keeps what it once got, so
that no pass over a fresh tensor waits for the system to supply its pages. Writes benchmarks/results/NAME.json and
NAME.png. Run it on a machine that does nothing else.
"""

from __future__ import annotations

from benchmark import record

if __name__ == "__main__":
    record("blocks", ["repvgg"], batches=[1, 8, 32], channels=64, description=__doc__)
