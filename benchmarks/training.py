"""Time and memory of a block's training step, in units of YOLO's convolution + batch norm + SiLU.

    python -m benchmarks training
    python -m benchmarks training repvgg mobileone --shapes 8x64x64 --compile --autocast bfloat16
    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python -m benchmarks training --name kept

Forms: separate runs every branch by itself; joint runs all branches in one autograd function; compiled is the block
under `torch.compile`, with --compile. The third command keeps memory in the C library, so that no pass over a new
tensor waits for page faults. Writes results/NAME.json and NAME.png. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.runner import Recorder
from yolorep.bench.measure import LAYOUTS, Settings, checked
from yolorep.bench.training import (
    AUTOCASTS,
    COMPILED,
    DEPLOYED,
    JOINT,
    SEPARATE,
    STOCK,
    Cost,
    Shape,
    cost,
    default_autocast,
)

COLOURS = {SEPARATE: "tab:orange", JOINT: "tab:blue", COMPILED: "tab:green"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("blocks", nargs="*", default=["repvgg"], help="default: repvgg")
    parser.add_argument("--shapes", nargs="+", default=["8x64x64", "16x128x40"], help="batch x channels x size")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--compile", action="store_true", help="add torch.compile of the block")
    parser.add_argument("--autocast", choices=AUTOCASTS, help="default: half on a GPU, as the hosts train, else none")
    parser.add_argument("--rounds", type=int, default=20)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Time every block at every shape in every layout, print the table and write the record."""
    device = checked(Settings(device=options.device, rounds=options.rounds, threads=options.threads))
    autocast = options.autocast or default_autocast(device)
    shapes = [Shape.of(text) for text in options.shapes]
    torch.set_num_threads(options.threads or torch.get_num_threads())
    console, costs = Console(), []
    for block, shape, layout in product(options.blocks, shapes, options.layouts):
        with console.status(f"{block}, {shape}, {layout}"):
            costs.append(
                cost(block, shape, layout, device, options.rounds, compiled=options.compile, autocast=autocast)
            )
    console.print(table(costs))
    results = {"rounds": options.rounds, "autocast": autocast, "results": [record_of(one) for one in costs]}
    picture = {".png": lambda file: plot(costs, file)}
    console.print("wrote", *map(str, recorder.write(results, flags=costs[0].timing.flags, also=picture)))


def table(costs: Sequence[Cost]) -> Table:
    """Return the table: step and memory in units of stock, quartiles of the step, page faults."""
    view = Table(title=f"in units of {STOCK}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("run", overflow="fold")
    for column in ("form", "ms", "step", "quartiles", "kept", "peak", "faults"):
        view.add_column(column, justify="left" if column == "form" else "right", no_wrap=True)
    for one in costs:
        for form in one.timing.seconds:
            ratio, (kept, peak) = one.timing.ratio(form, STOCK), memory_ratios(one, form)
            faults = one.timing.page_faults
            view.add_row(
                label_of(one) if form == STOCK else "",
                form,
                f"{one.timing.time(form).median * 1e3:.1f}",
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f}-{ratio.high:.2f}",
                f"{kept:.2f}",
                f"{peak:.2f}",
                f"{median(faults[form]):.0f}" if faults else "-",
            )
        view.add_section()
    return view


def label_of(one: Cost) -> str:
    """Return the label of a run: the values that all its forms share."""
    trained, deployed = one.parameters
    latency = one.latency.ratio(DEPLOYED, STOCK).median
    return (
        f"{one.block} {one.shape} {one.layout}\n{trained:,} → {deployed:,} parameters\ndeployed latency {latency:.2f}"
    )


def memory_ratios(one: Cost, form: str) -> tuple[float, float]:
    """Return kept and peak bytes in units of stock."""
    mine, stock = one.memory[form], one.memory[STOCK]
    return mine.kept / stock.kept, mine.peak / stock.peak


def record_of(one: Cost) -> dict[str, Any]:
    """Return a run as its entry in the JSON file."""
    trained, deployed = one.parameters
    forms = {
        form: {
            "step_ms": one.timing.time(form).median * 1e3,
            "step_of_stock": asdict(one.timing.ratio(form, STOCK)),
            "memory": asdict(one.memory[form]),
            "kept_of_stock": memory_ratios(one, form)[0],
            "peak_of_stock": memory_ratios(one, form)[1],
            "page_faults": median(one.timing.page_faults[form]) if one.timing.page_faults else None,
            "seconds": one.timing.seconds[form],
        }
        for form in one.timing.seconds
    }
    return {
        "block": one.block,
        "shape": str(one.shape),
        "layout": one.layout,
        "autocast": one.autocast,
        "parameters": {"trained": trained, "deployed": deployed},
        "deployed_latency_of_stock": asdict(one.latency.ratio(DEPLOYED, STOCK)),
        "forms": forms,
    }


def plot(costs: Sequence[Cost], file: Path) -> None:
    """Draw step (whiskers: quartiles) and kept activations in units of stock, one group of bars per run."""
    figure = Figure(figsize=(max(6.0, 2 + 1.6 * len(costs)), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    shown = [form for form in COLOURS if any(form in one.timing.seconds for one in costs)]
    for place, form in enumerate(shown):
        runs = [(i, one) for i, one in enumerate(costs) if form in one.timing.seconds]
        where = [i + 0.8 / len(shown) * (place - (len(shown) - 1) / 2) for i, _ in runs]
        steps = [one.timing.ratio(form, STOCK) for _, one in runs]
        whiskers = [[s.median - s.low for s in steps], [s.high - s.median for s in steps]]
        look: dict[str, Any] = {"width": 0.76 / len(shown), "color": COLOURS[form], "label": form}
        bars = [
            axes[0].bar(where, [s.median for s in steps], yerr=whiskers, error_kw={"lw": 1, "capsize": 2}, **look),
            axes[1].bar(where, [memory_ratios(one, form)[0] for _, one in runs], **look),
        ]
        for axis, drawn in zip(axes, bars, strict=True):
            axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=3)
    for axis, what in zip(axes, ("step", "kept activations"), strict=True):
        axis.axhline(1, color="tab:grey", lw=1)
        axis.set_ylabel(f"{what} / {STOCK}")
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xticks(range(len(costs)), [f"{one.block}\n{one.shape}\n{one.layout}" for one in costs], fontsize=8)
    axes[0].legend(frameon=False, ncols=len(shown), fontsize=8)
    figure.savefig(file, dpi=130)
