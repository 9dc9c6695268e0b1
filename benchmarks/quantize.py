"""Whether fine-tuning with 8-bit rounding helps: against the same fine-tuning without rounding, and against none.

    python -m benchmarks quantize path/to/data.yaml seed0/last.pt seed1/last.pt --imgsz 192

Runs `yolorep quantize --finetune` on every checkpoint twice, the second time with the rounding left out. Prints the
figures of every run and writes results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from rich.console import Console

from benchmarks.runner import Recorder
from yolorep.bench.record import torch_flags
from yolorep.commands.quantize import Request, quantize_file
from yolorep.quantization import finetuning

FORMS = ("before", "rounded", "plain")  # without fine-tuning, with rounding, and fine-tuned without rounding


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="trained checkpoints, such as those of several seeds")
    parser.add_argument("--schemes", nargs="+", default=["minmax", "minmax-tensor"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--imgsz", type=int, default=320)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Quantize every checkpoint with and without rounding, print the figures and write the record, after each."""
    console, results = Console(), []
    for checkpoint in options.checkpoints:
        rounded = _candidates(options, checkpoint, console)
        with mock.patch.object(finetuning, "round_"):
            plain = _candidates(options, checkpoint, console)
        before = [row for row in rounded if not row["finetuned"]]
        with_rounding, without = ([row for row in rows if row["finetuned"]] for rows in (rounded, plain))
        results.append({"checkpoint": checkpoint.name, "before": before, "rounded": with_rounding, "plain": without})
        for name in FORMS:
            console.print(name, *(f"{row['scheme']} {row['figures']['mAP50-95']:.4f}" for row in results[-1][name]))
        entries = {"epochs": options.epochs, "imgsz": options.imgsz, "results": results}
        console.print("wrote", *map(str, recorder.write(entries, flags=torch_flags())))


def _candidates(options: argparse.Namespace, checkpoint: Path, console: Console) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        request = Request(
            checkpoint, out, options.data, options.imgsz, tuple(options.schemes), max_drop=100, finetune=options.epochs
        )
        quantize_file(request, console)
        report = json.loads(out.with_name(f"{out.name}.json").read_text(encoding="utf-8"))
    return [row for row in report["candidates"] if not row["floats"]]
