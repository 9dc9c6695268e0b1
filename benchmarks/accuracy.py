"""mAP of stock and rep on one data set, by `yolorep compare`: arguments after -- are passed on.

    python -m benchmarks accuracy -- model=yolov5n.yaml data=path/to/data.yaml rep=repvgg seeds=3 epochs=20 imgsz=192

Records compare.json and compare.png of the comparison as results/NAME.json and NAME.png. With --kept FOLDER, what the
comparison needs of its finished runs (figures and predictions, no weights) is copied there, and taken from there before
anything is trained: a comparison can go on on another machine. Times are compared within a seed, so train all arms of a
seed on one machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rich.console import Console

from benchmarks.runner import Recorder
from yolorep.commands import compare
from yolorep.compare.processes import RESULT

NEEDED = ("epochs.jsonl", "images.npz", "train/results.csv", RESULT)  # of a run; its result is copied last


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("arguments", nargs="+", help="ARG=VALUE of yolorep compare")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the trainings")
    parser.add_argument("--kept", type=Path, help="folder of finished runs, without weights")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Compare, and record what was found; runs that the folder holds are not trained again."""
    if options.kept:
        copy_finished(options.kept, options.runs)
    try:
        compare.run([*options.arguments, f"out={options.runs}"], Console(markup=False))
    finally:
        if options.kept:
            copy_finished(options.runs, options.kept)
    found = json.loads((options.runs / "compare.json").read_text(encoding="utf-8"))
    entries = {name: found[name] for name in ("plan", "rows", "findings", "sweep", "runs")}
    recorder.write(entries, also={".png": (options.runs / "compare.png").read_bytes()})


def copy_finished(source: Path, target: Path) -> None:
    """Copy the plan, so that another one is refused, and what is needed of each finished run, unless it is there."""
    plan = source / compare.PLAN
    if plan.is_file() and not (target / compare.PLAN).is_file():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(plan, target)
    for result in source.glob(f"*/{RESULT}"):
        copy = target / result.parent.name
        if not (copy / RESULT).is_file():
            for name in NEEDED:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(result.parent / name, copy / name)
