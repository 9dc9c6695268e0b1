"""Cost of a whole model's training step and of its kept activations, per block, in units of the stock model.

    python -m benchmarks steps
    python -m benchmarks steps yolo11n.yaml --blocks repvgg csla --autocast bfloat16

Expands a model of ultralytics at its default layers with each block. A step is forward, backward and the step of the
host's SGD, without the host's loss, which all models have alike; all models are timed interleaved. Prints the table
and writes results/NAME.json, with the load of the machine during each run. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.runner import Recorder
from yolorep import expand
from yolorep.bench.record import torch_flags
from yolorep.bench.timing import Timing
from yolorep.bench.training import AUTOCASTS, STOCK
from yolorep.bench.whole_step import time_steps
from yolorep.hosts.ultralytics.build import build

BLOCKS = ["repvgg", "orepa", "csla", "repopt"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("models", nargs="*", default=["yolov5n.yaml", "yolov5s.yaml"])
    parser.add_argument("--blocks", nargs="+", default=BLOCKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--autocast", nargs="+", choices=AUTOCASTS, default=["none", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Time the steps of every model with every block, print the table and write the record."""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    device, console, results = torch.device(options.device), Console(), []
    x = torch.rand(options.batch, 3, options.imgsz, options.imgsz, device=device)
    view = Table(title=f"in units of {STOCK}", title_justify="left", box=SIMPLE_HEAD)
    for column in ("model", "autocast", "block", "step", "quartiles", "kept"):
        view.add_column(column)
    for model in options.models:
        for autocast in options.autocast:
            torch.manual_seed(0)
            stock = build(model).to(device).train()
            models = {STOCK: stock, **{block: expand(stock, block) for block in options.blocks}}
            load: list[float] = []
            watch = partial(_note_load, load)
            timing, kept = time_steps(models, x, options.rounds, AUTOCASTS[autocast], watch)
            results.append({"model": model, "autocast": autocast, "load": load, "blocks": _rows(timing, kept)})
            for name, row in results[-1]["blocks"].items():
                step, share = row["step_of_stock"], row["kept_of_stock"]
                quartiles = f"{step['low']:.2f}-{step['high']:.2f}"
                view.add_row(model, autocast, name, f"{step['median']:.2f}", quartiles, f"{share:.2f}")
    console.print(view)
    entries = {"batch": options.batch, "imgsz": options.imgsz, "rounds": options.rounds, "results": results}
    console.print("wrote", *map(str, recorder.write(entries, flags=torch_flags())))


def _note_load(load: list[float]) -> None:
    """Add the processes that ran or waited in the last minute, where the system counts them."""
    if hasattr(os, "getloadavg"):
        load.append(os.getloadavg()[0])


def _rows(timing: Timing, kept: dict[str, int]) -> dict[str, Any]:
    return {
        name: {
            "step_of_stock": asdict(timing.ratio(name, STOCK)),
            "kept_of_stock": kept[name] / kept[STOCK],
            "seconds": seconds,
        }
        for name, seconds in timing.seconds.items()
    }
