"""Seconds from the command to the prompt, beside ultralytics' own command: each in turn, in a new process.

python -m benchmarks startup
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from benchmarks.host_runs import YOLOREP
from benchmarks.runner import Recorder
from yolorep.bench.record import torch_flags
from yolorep.bench.timing import interleave
from yolorep.errors import HostError

YOLO = [str(Path(sysconfig.get_path("scripts")) / "yolo")]
PYTHON = [sys.executable, "-c"]
# what a user types → the command
COMMANDS: dict[str, Sequence[str]] = {
    "yolorep --help": [*YOLOREP, "--help"],
    "yolorep train --help": [*YOLOREP, "train", "--help"],
    "yolorep show yolov5s-rep.yaml": [*YOLOREP, "show", "yolov5s-rep.yaml"],
    "import yolorep": [*PYTHON, "import yolorep"],
    "import yolorep, ultralytics": [*PYTHON, "import yolorep; from ultralytics import YOLO"],
    "yolo --help": [*YOLO, "help"],
    "import ultralytics": [*PYTHON, "from ultralytics import YOLO"],
    "import torch": [*PYTHON, "import torch"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Time every command, print its median and write the record.

    Raises:
        HostError: a command fails.
    """
    calls = {name: partial(call, command) for name, command in COMMANDS.items()}
    timing = interleave(calls, options.rounds, torch.device("cpu"))
    seconds = {name: timing.time(name) for name in COMMANDS}
    for name, spread in seconds.items():
        print(f"{name:30} {spread.median:.2f} s")
    results = {name: asdict(spread) for name, spread in seconds.items()}
    recorder.write({"rounds": options.rounds, "results": results}, flags=torch_flags())


def call(command: Sequence[str]) -> None:
    """Run a command whose output nobody reads.

    Raises:
        HostError: it fails.
    """
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise HostError(f"{' '.join(command)} failed")
