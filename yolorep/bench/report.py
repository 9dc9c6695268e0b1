"""The output of `yolorep bench`: a table on the screen, a JSON file with every sample, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, zip_longest
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from yolorep.bench.measure import Result, Settings
from yolorep.bench.record import as_json, describe, machine, replace_together
from yolorep.bench.subjects import CONVOLUTION, DEPLOYED, STOCK, UNFUSED
from yolorep.bench.timing import Spread

COLOURS = {UNFUSED: "tab:orange", DEPLOYED: "tab:blue", STOCK: "tab:grey", CONVOLUTION: "tab:green"}
OTHER_COLOURS = ("tab:red", "tab:purple", "tab:olive", "tab:brown", "tab:pink", "tab:cyan")  # models of --beside


def table(results: Sequence[Result], settings: Settings) -> Table:
    """Return the table: median time of a call, images per second, time / time of the deployed form, page faults."""
    view = Table(title=_conditions(results, settings), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
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


def write(
    results: Sequence[Result], settings: Settings, stem: Path, script: str = "yolorep bench"
) -> tuple[Path, Path]:
    """Write `stem`.json and `stem`.png, both or neither, replacing an earlier run's; return both paths.

    Raises:
        UsageError: they cannot be written.
    """
    record = describe(script, settings.device, results[0].timing.flags, rounds=settings.rounds, autocast=None)
    record["results"] = [_record(result) for result in results]
    files = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    replace_together({files[0]: as_json(record), files[1]: lambda file: plot(results, settings, file)})
    return files


def plot(results: Sequence[Result], settings: Settings, file: Path) -> None:
    """Draw one group of bars per run: median time / time of the deployed form; whiskers are the quartiles."""
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
    axis.set_title(fill(_conditions(results, settings), int(12 * figure.get_figwidth())), fontsize=9)
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=min(len(shown), 4), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.savefig(file, dpi=130)


def _conditions(results: Sequence[Result], settings: Settings) -> str:
    m = machine(settings.device, results[0].timing.flags)
    threads = f"{m['threads']} thread{'s' * (m['threads'] != 1)}"
    chosen = "on" if m["cudnn_benchmark"] else "off"
    where = f"{m['gpu']}, cudnn.benchmark {chosen}" if m["gpu"] else f"{m['processor']}, {threads}"
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
