"""Trainings in processes of their own: start one with its output in a log, and read the host's results.csv."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# metric → its column in results.csv, in ultralytics and in YOLOv5
METRICS = {
    "mAP50": ("metrics/mAP50(B)", "metrics/mAP_0.5"),
    "mAP50-95": ("metrics/mAP50-95(B)", "metrics/mAP_0.5:0.95"),
}
YOLOREP = [sys.executable, "-m", "yolorep"]


def start(
    command: Sequence[str], log: Path, threads: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command whose output is appended to `log`. threads: OMP_NUM_THREADS of every process that it starts."""
    variables = {**os.environ, **(environment or {}), "OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)


def train_command(
    host: str, given: Mapping[str, object], flags: Sequence[str], *, launcher: Sequence[str] = ()
) -> list[str]:
    """Return the command line of a training.

    host: 'ultralytics' or 'yolov5'. given: options by the host's names. flags: switches of YOLOv5's train.py.
    launcher: what comes between the interpreter and `-m yolorep`, such as torch's distributed launcher.
    """
    if host == "ultralytics":
        return [*YOLOREP, "train", *(f"{key}={value}" for key, value in given.items())]
    options = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    return [YOLOREP[0], *launcher, *YOLOREP[1:], "yolov5", "train.py", *options, *flags]


def epochs_of(folder: Path) -> list[dict[str, float]]:
    """Return the row of results.csv for every finished epoch; an empty list before the first."""
    file = folder / "results.csv"
    if not file.is_file():
        return []
    with file.open() as rows:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(rows)]


def curves_of(epochs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the values of every metric, one per epoch."""
    return {name: [next(e[c] for c in columns if c in e) for e in epochs] for name, columns in METRICS.items()}
