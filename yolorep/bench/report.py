"""What a benchmark leaves behind: a table on the screen, a JSON file with every sample, and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from yolorep.atomic_files import written_whole
from yolorep.bench.measure import Result, Settings
from yolorep.bench.subjects import CONVOLUTION, DEPLOYED, STOCK, UNFUSED
from yolorep.bench.timing import Spread

PACKAGES = ("yolorep", "ultralytics", "torch", "numpy")
COLOURS = {UNFUSED: "tab:orange", DEPLOYED: "tab:blue", STOCK: "tab:grey", CONVOLUTION: "tab:green"}
OTHER_COLOURS = ("tab:red", "tab:purple", "tab:olive", "tab:brown", "tab:pink", "tab:cyan")  # of models timed beside
ALLOCATOR_SETTINGS = ("MALLOC_", "LD_PRELOAD")  # prefixes of variables that set how memory is kept


def table(results: Sequence[Result], settings: Settings) -> Table:
    """Median time of a call, images a second, the time in units of the deployed form's with quartiles, page faults."""
    view = Table(title=_conditions(settings), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("run", overflow="fold")
    view.add_column("form", no_wrap=True)
    for column in ("ms", "FPS", f"/ {DEPLOYED}", "quartiles", "faults"):
        view.add_column(column, justify="right", no_wrap=True)
    for result in results:
        label = (result.what, f"batch {result.batch}, {result.size} px", f"{result.precision} {result.layout}")
        for line, form in zip_longest(label, result.timing.seconds):
            view.add_row(line, *(_cells(result, form) if form else ()))
        view.add_section()
    return view


def write(results: Sequence[Result], settings: Settings, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.json and `stem`.png, replacing those of an earlier run; returns both paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(settings),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": settings.device,
        "rounds": settings.rounds,
        "results": [_record(result) for result in results],
    }
    files = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    with written_whole(files[0], "w") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    plot(results, settings, files[1])
    return files


def machine(settings: Settings) -> dict[str, Any]:
    """Where the figures were taken, and how the libraries were set."""
    gpu = torch.device(settings.device).type == "cuda"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": settings.threads or torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(settings.device) if gpu else None,
        "cudnn_benchmark": True if gpu else None,
        "allocator": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ALLOCATOR_SETTINGS)},
        "system": platform.system(),
        "python": platform.python_version(),
    }


def plot(results: Sequence[Result], settings: Settings, file: Path) -> None:
    """One group of bars a run: the median time in units of the deployed form's, quartiles as whiskers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 1.5 + 1.7 * len(results)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    timed = list(dict.fromkeys(form for r in results for form in r.timing.seconds))
    colours = COLOURS | dict(zip([form for form in timed if form not in COLOURS], cycle(OTHER_COLOURS), strict=False))
    shown = [form for form in colours if form in timed]
    for place, form in enumerate(shown):
        bars = [(i, r) for i, r in enumerate(results) if form in r.timing.seconds]
        ratios = [r.timing.ratio(form, DEPLOYED) for _, r in bars]
        width = 0.81 / len(shown)
        where = [i + width * (place - (len(shown) - 1) / 2) for i, _ in bars]
        whiskers = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        heights = [r.median for r in ratios]
        look: dict[str, Any] = {"color": colours[form], "label": form, "error_kw": {"lw": 1, "capsize": 2}}
        axis.bar(where, heights, width - 0.02, yerr=whiskers, **look)
        for x, ratio in zip(where, ratios, strict=True):
            above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axis.annotate(f"{ratio.median:.2f}", (x, ratio.high), **above)
    axis.set_xticks(range(len(results)), [_group(r) for r in results], fontsize=8)
    axis.set_ylabel(f"time / time {DEPLOYED}")
    axis.set_title(_conditions(settings), fontsize=9)
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=min(len(shown), 4), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    with written_whole(file, "wb") as whole:
        figure.savefig(whole, dpi=130)  # type: ignore[arg-type]


def _conditions(settings: Settings) -> str:
    m = machine(settings)
    threads = f"{m['threads']} thread{'s' * (m['threads'] != 1)}"
    where = f"{m['gpu']}, cudnn.benchmark on" if m["gpu"] else f"{m['processor']}, {threads}"
    return f"{where}, torch {torch.__version__}, {settings.rounds} interleaved rounds"


def _cells(result: Result, form: str) -> tuple[str, ...]:
    time, ratio = result.timing.time(form), result.timing.ratio(form, DEPLOYED)
    speed = f"{time.median * 1e3:.2f}", f"{result.batch / time.median:.1f}"
    faults = f"{median(result.timing.page_faults[form]):.0f}" if result.timing.page_faults else "-"
    return form, *speed, f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}", faults


def _record(result: Result) -> dict[str, Any]:
    timing = result.timing
    conditions = {key: value for key, value in vars(result).items() if key != "timing"}
    forms = {
        form: {
            "ms": asdict(_scaled(timing.time(form), 1e3)),
            "fps": result.batch / timing.time(form).median,
            "times_deployed": asdict(timing.ratio(form, DEPLOYED)),
            "seconds": timing.seconds[form],
            "page_faults": median(timing.page_faults[form]) if timing.page_faults else None,
        }
        for form in timing.seconds
    }
    return {**conditions, "calls_a_sample": timing.calls, "forms": forms}


def _group(result: Result) -> str:
    precision = "" if result.precision == "float32" else f"\n{result.precision}"
    return f"{result.what}\nbatch {result.batch}, {result.size} px\n{result.layout}{precision}"


def _scaled(spread: Spread, unit: float) -> Spread:
    return Spread(spread.median * unit, spread.low * unit, spread.high * unit)


def _processor() -> str:
    """The processor's name; `platform.processor` gives only its family on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
