"""Time models or blocks unfused, deployed and stock, interleaved, with the options of `yolorep bench`.

    python -m benchmarks fps
    python -m benchmarks classifiers
    python -m benchmarks blocks
    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python -m benchmarks blocks --name blocks-kept

With the two variables, glibc keeps memory that it once got from the system, so that no pass over a new tensor waits for
page faults. Writes results/NAME.json and NAME.png. Run it on an idle machine.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks.runner import Recorder
from yolorep.bench.measure import LAYOUTS, PRECISIONS, Settings
from yolorep.commands.bench import run as bench


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; their defaults are in the runner's table."""
    parser.add_argument("what", nargs="*", help="models and blocks, as for `yolorep bench`")
    parser.add_argument("--beside", nargs="*", default=(), help="models timed deployed in the same rounds")
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--imgsz", nargs="+", type=int, default=(), help="pixels; a block: 64, a model: its usual size")
    parser.add_argument("--channels", type=int, default=64, help="channels of a block")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--rounds", type=int, default=40)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Time everything, print the table and write the record."""
    settings = Settings(
        tuple(options.batch),
        (),
        tuple(options.precision),
        tuple(LAYOUTS),
        options.device,
        options.rounds,
        options.threads,
    )
    bench(
        options.what,
        settings,
        recorder.stem,
        sizes=options.imgsz,
        channels=options.channels,
        others=options.beside,
        console=Console(),
        script=f"benchmarks {recorder.name}",
    )
