"""What a training step of a block costs: time and memory beside YOLO's convolution + batch norm + SiLU.

    python benchmarks/training.py
    python benchmarks/training.py repvgg mobileone --shapes 8x64x64 --compile
    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python benchmarks/training.py --name kept

separate: every branch on its own. joint: all in one step, the default. compiled: by torch.compile, with --compile.
The third command keeps the memory that the C library once got, so that no pass over a fresh tensor waits for the system
to supply its pages. Writes benchmarks/results/NAME.json and NAME.png. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark import RESULTS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from yolorep.atomic_files import written_whole
from yolorep.bench.measure import LAYOUTS, Settings, best_device, checked
from yolorep.bench.report import machine
from yolorep.bench.training import COMPILED, DEPLOYED, JOINT, SEPARATE, STOCK, Cost, Shape, cost
from yolorep.commands.bench import check_folder
from yolorep.errors import YolorepError

COLOURS = {SEPARATE: "tab:orange", JOINT: "tab:blue", COMPILED: "tab:green"}


def main() -> None:
    """Measure, show and write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", default=["repvgg"], help="by default repvgg")
    parser.add_argument("--shapes", nargs="+", default=["8x64x64", "16x128x40"], help="batch x channels x size")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--compile", action="store_true", help="torch.compile the block too")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="training", help="of the files in --out")
    options = parser.parse_args()
    console = Console()
    settings = Settings(device=options.device, rounds=options.rounds, threads=options.threads)
    try:
        check_folder(options.out)
        costs = measured(options, checked(settings), console)
    except YolorepError as error:
        sys.exit(f"{parser.prog}: {error}")
    console.print(table(costs))
    console.print("wrote", *map(str, write(costs, settings, options.out / options.name)))


def measured(options: argparse.Namespace, device: torch.device, console: Console) -> list[Cost]:
    """Every block at every shape in every layout."""
    shapes = [Shape.of(text) for text in options.shapes]
    torch.set_num_threads(options.threads or torch.get_num_threads())
    costs = []
    for block, shape, layout in product(options.blocks, shapes, options.layouts):
        with console.status(f"{block}, {shape}, {layout}"):
            costs.append(cost(block, shape, layout, device, options.rounds, compiled=options.compile))
    return costs


def table(costs: Sequence[Cost]) -> Table:
    """Step and memory in units of stock, quartiles of the step, page faults."""
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
    """What was run, and what is the same for every form."""
    trained, deployed = one.parameters
    latency = one.latency.ratio(DEPLOYED, STOCK).median
    return (
        f"{one.block} {one.shape} {one.layout}\n{trained:,} → {deployed:,} parameters\ndeployed latency {latency:.2f}"
    )


def memory_ratios(one: Cost, form: str) -> tuple[float, float]:
    """Kept and peak bytes in units of stock's."""
    mine, stock = one.memory[form], one.memory[STOCK]
    return mine.kept / stock.kept, mine.peak / stock.peak


def write(costs: Sequence[Cost], settings: Settings, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.json, with every sample, and `stem`.png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(settings),
        "torch": torch.__version__,
        "rounds": settings.rounds,
        "results": [record_of(one) for one in costs],
    }
    files = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    with written_whole(files[0], "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    plot(costs, files[1])
    return files


def record_of(one: Cost) -> dict[str, Any]:
    """A run as it is written to the JSON file."""
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
        "parameters": {"trained": trained, "deployed": deployed},
        "deployed_latency_of_stock": asdict(one.latency.ratio(DEPLOYED, STOCK)),
        "forms": forms,
    }


def plot(costs: Sequence[Cost], file: Path) -> None:
    """Step and kept activations in units of stock, a group of bars a run; quartiles of the step as whiskers."""
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
    with written_whole(file, "wb") as whole:
        figure.savefig(whole, dpi=130)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
