"""The report of a comparison: a table as rich text, Markdown and LaTeX, a plot, and the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from yolorep.bench.record import Content, as_json, describe, replace_together
from yolorep.compare.findings import Row, points
from yolorep.compare.plan import STOCK, Plan, counted
from yolorep.compare.runs import LAST, epochs_of
from yolorep.compare.stages import Trained

INTERVALS = ("points at equal epochs", "points at equal time")
COLUMNS = ("model", "lr", "mAP50", "mAP50-95", *INTERVALS, "epoch", "step", "kept", "parameters", "latency")


def columns(found: Sequence[Row]) -> tuple[str, ...]:
    """Return the names of the table's columns; the one of 8 bits only where it was measured."""
    return (*COLUMNS, "INT8 loss") if any(row.int8 for row in found) else COLUMNS


def cells(row: Row, int8: bool) -> list[str]:
    """Return the texts of a row; costs are in units of stock."""
    equal_time = (
        "" if row.equal_time is None else f"{points(row.equal_time)} ({counted(row.epochs_for_time or 0, 'epoch')})"
    )
    last = [f"{mean(row.int8):+.2f}" if row.int8 else ""] if int8 else []
    return [
        row.arm,
        f"x{row.factor:g}",
        f"{row.map50:.3f}",
        f"{row.map:.3f}",
        "" if row.equal_epochs is None else points(row.equal_epochs),
        equal_time,
        f"{row.time:.2f}",
        f"{row.cost.step:.2f}",
        f"{row.cost.kept:.2f}",
        f"{row.cost.parameters:,}",
        f"{row.cost.latency:.2f}",
        *last,
    ]


def screen(plan: Plan, found: Sequence[Row]) -> Table:
    """Return the table for a terminal, one column for each model, so that it fits 80 characters."""
    view = Table(title=title(plan), caption=UNITS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.title_justify = view.caption_justify = "left"
    names = columns(found)
    texts = [cells(row, len(names) > len(COLUMNS)) for row in found]
    view.add_column("")
    for row in texts:
        view.add_column(row[0], justify="right", overflow="fold")
    for index, name in enumerate(names[1:], 1):
        view.add_row(name, *(row[index] for row in texts))
    return view


def markdown(plan: Plan, found: Sequence[Row], told: Sequence[str]) -> str:
    """Return the report as Markdown."""
    names = columns(found)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cells(row, len(names) > len(COLUMNS)))} |" for row in found]
    return "\n".join([f"# {title(plan)}", "", *lines, "", notes(plan), "", *(f"- {line}" for line in told), ""])


def latex(plan: Plan, found: Sequence[Row]) -> str:
    """Return the table as LaTeX, for the package booktabs."""
    names = columns(found)
    body = [" & ".join(_escaped(text) for text in cells(row, len(names) > len(COLUMNS))) + r" \\" for row in found]
    head = " & ".join(_escaped(name) for name in names) + r" \\"
    rule = r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}"
    note = f"% {title(plan)}. {' '.join(notes(plan).split())}"
    return "\n".join([note, rule, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


UNITS = "epoch, step, kept (activations for the backward pass) and latency (deployed model) are in units of stock."
NOTES = """Points: mean paired difference from stock, in points of mAP50-95, with its 95 % interval over seeds and
validation images. At equal time, stock is trained for the epochs in parentheses. INT8 loss is in points of mAP50-95."""


def notes(plan: Plan) -> str:
    """Return what the columns mean."""
    last = f"mean of the last {LAST} epochs" if plan.epochs >= LAST else "mean of all epochs"
    return f"mAP50 and mAP50-95 are the {last} (EMA weights) over the seeds.\n{NOTES}\n{UNITS}"


def title(plan: Plan) -> str:
    """Return the conditions in one line."""
    data, model = Path(plan.data).absolute(), Path(plan.model).name
    where = data.parent.name if data.name == "data.yaml" else data.name
    trained = f"{counted(plan.epochs, 'epoch')}, {plan.imgsz} px"
    how = f"batch {plan.train['batch']}, {plan.train['optimizer']}"
    return f"{model} on {where or data.name}: {trained}, {how}, {counted(plan.seeds, 'seed')}"


def write(plan: Plan, found: Sequence[Row], told: Sequence[str], trained: Trained, folder: Path) -> list[Path]:
    """Replace compare.json, .md, .tex and .png in the folder, all or none; return their paths."""
    record: dict[str, Any] = describe("yolorep compare", plan.device, plan=plan.record())
    record |= {"rows": [asdict(row) for row in found], "findings": list(told), "sweep": trained.sweep}
    record["runs"] = [
        {"arm": arm, "seed": seed, "epochs": epochs, "factor": run.factor}
        | {**trained.results[run.name], "curve": epochs_of(trained.folder / run.name)}
        for (arm, seed, epochs), run in trained.runs.items()
    ]
    stem = folder / "compare"
    files: dict[Path, Content] = {
        stem.with_suffix(".json"): as_json(record),
        stem.with_suffix(".md"): markdown(plan, found, told),
        stem.with_suffix(".tex"): latex(plan, found),
        stem.with_suffix(".png"): lambda file: plot(plan, found, trained, file),
    }
    replace_together(files)
    return list(files)


def plot(plan: Plan, found: Sequence[Row], trained: Trained, file: Path) -> None:
    """Draw the curve of every run, and the paired differences with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curves, differences = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = {row.arm: "tab:grey" if row.arm == STOCK else f"C{index - 1}" for index, row in enumerate(found)}
    for (arm, seed, epochs), run in trained.runs.items():
        values = [100 * epoch["mAP50-95"] for epoch in epochs_of(trained.folder / run.name)]
        style: dict[str, Any] = {"linestyle": "-" if epochs == plan.epochs else ":", "alpha": 0.6, "linewidth": 1.2}
        label = arm if epochs == plan.epochs else f"{arm}, {counted(epochs, 'epoch')}"
        style |= {"color": colours[arm], "label": label if seed == 0 else None}
        curves.plot(range(1, len(values) + 1), values, **style)
    curves.set(xlabel="epoch", ylabel="mAP50-95 (%)", title="all runs")
    curves.legend(fontsize="small")
    _forest(differences, found[1:], colours)
    figure.suptitle(title(plan), fontsize="medium")
    figure.savefig(file, dpi=120)


def _forest(axis: Any, found: Sequence[Row], colours: dict[str, str]) -> None:
    """Draw one interval per candidate and condition."""
    labels: list[str] = []
    for row in found:
        for name, one in (("equal epochs", row.equal_epochs), ("equal time", row.equal_time)):
            if one is None:
                continue
            half = 0.0 if one.seeds < 2 else 100 * one.half
            marker = "o" if name == "equal epochs" else "s"
            axis.errorbar(100 * one.difference, len(labels), xerr=half, fmt=marker, color=colours[row.arm], capsize=3)
            labels.append(f"{row.arm}\n{name}")
    axis.axvline(0, color="tab:grey", linewidth=1)
    axis.set_yticks(range(len(labels)), labels, fontsize="small")
    axis.margins(y=0.2)
    axis.invert_yaxis()
    axis.set(xlabel="points of mAP50-95, candidate - stock", title="paired differences, 95 % interval")


def _escaped(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$").replace("+", "$+$").replace("-", "$-$") if _is_number(text) else text


def _is_number(text: str) -> bool:
    return text[:1] in "+-" and text[1:2].isdigit()
