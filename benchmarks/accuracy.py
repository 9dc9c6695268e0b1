"""mAP of stock and rep on one data set, by `yolorep compare`: arguments after -- are passed on.

    python -m benchmarks accuracy -- model=yolov5n.yaml data=path/to/data.yaml rep=repvgg seeds=3 epochs=20 imgsz=192

Records compare.json and compare.png of the comparison as results/NAME.json and NAME.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from benchmarks.runner import Recorder
from yolorep.commands import compare


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("arguments", nargs="+", help="ARG=VALUE of yolorep compare")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the trainings")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Compare, and record what was found; runs that the folder holds are not trained again."""
    compare.run([*options.arguments, f"out={options.runs}"], Console(markup=False))
    found = json.loads((options.runs / "compare.json").read_text(encoding="utf-8"))
    entries = {name: found[name] for name in ("plan", "rows", "findings", "sweep", "runs")}
    recorder.write(entries, also={".png": (options.runs / "compare.png").read_bytes()})
