"""The picture of `yolorep show --png`: every convolution of a network in training, and deployed."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from yolorep.summary_report import Layer, Summary

ROW, WIDTH = 0.19, 11.0  # inches: height of a row, width of the picture
DENSE, BRANCH, FOLDED, STOCK = "#a9c4ee", "#f7c873", "#a9dfbf", "#e4e4e7"
INK = "#3f4654"
MOST = 8  # paths of a block that are drawn one by one


def draw(summary: Summary, title: str, file: Path) -> None:
    """Draw one row for each convolution, in the order of the network: on the left its paths, on the right one layer.

    Each path is filled by its share of the folded kernel's norm, so that a branch that adds nothing is an empty box.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(summary)
    figure = Figure(figsize=(WIDTH, 1.3 + ROW * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    before, after = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (2.2, 1)})
    for y, (_, layer) in enumerate(rows):
        _before(before, y, layer)
        _after(after, y, layer)
    now, deployed = (f"{count / 1e6:.2f} M parameters" for count in summary.parameters)
    before.set_title(f"in training: {len(summary.layers)} rep blocks, {now}", fontsize=9)
    after.set_title(f"deployed: {deployed}", fontsize=9)
    for axis in (before, after):
        axis.set_xlim(-0.005, 1.005)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    before.set_ylim(len(rows) - 0.5, -0.5)
    before.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    figure.suptitle(f"{title}: filled by the share of the folded kernel's norm; grey: left as it is", fontsize=10)
    figure.savefig(file, dpi=110, format="png")


def _rows(summary: Summary) -> list[tuple[str, Layer | None]]:
    """Return the rep blocks by name in the order of the network; between them, None for the convolutions without."""
    named: list[tuple[str, Layer | None]] = [(layer.name, layer) for layer in summary.layers]
    named += [(name, None) for left in summary.left for name in left.names]
    rows: list[tuple[str, Layer | None]] = []
    for (place, plain), together in groupby(sorted(named, key=_order), key=_part_of_network):
        names = list(together)
        rows += [(f"{place}: {len(names)} convolutions", None)] if plain and len(names) > 1 else names
    return rows


def _order(row: tuple[str, Layer | None]) -> list[tuple[int, str]]:
    """Return a key that sorts names as the network registers its layers: numbers by their values."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in row[0].split(".")]


def _part_of_network(row: tuple[str, Layer | None]) -> tuple[str, bool]:
    name, layer = row
    return (name, False) if layer is not None else (".".join(name.split(".")[:2]), True)


def _before(axis: Any, y: int, layer: Layer | None) -> None:
    if layer is None:
        _box(axis, y, 0.0, 1.0, "", STOCK)
        return
    if not layer.paths:
        _box(axis, y, 0.0, 1.0, layer.block, BRANCH)
        return
    shown = layer.paths[:MOST]
    width = 1.0 / len(shown)
    for index, path in enumerate(shown):
        rest = f" (+{len(layer.paths) - MOST} paths)" if len(layer.paths) > MOST and index == MOST - 1 else ""
        label = f"{path.name} {path.share or 0:.0%}{rest}"
        colour = BRANCH if path in layer.branches else DENSE
        _box(axis, y, index * width, width * 0.99, label, colour, min(path.share or 0.0, 1.0))


def _after(axis: Any, y: int, layer: Layer | None) -> None:
    if layer is None or layer.problem:
        _box(axis, y, 0.0, 1.0, "" if layer is None else layer.block, STOCK)
    else:
        _box(axis, y, 0.0, 1.0, f"{layer.shape}:  {layer.parameters} \N{RIGHTWARDS ARROW} {layer.deployed}", FOLDED)


def _box(axis: Any, y: int, x: float, width: float, label: str, colour: str, share: float = 1.0) -> None:
    """Draw a box that is filled from the left by `share`."""
    axis.barh(y, width * share, 0.8, left=x, color=colour)
    axis.barh(y, width, 0.8, left=x, color="none", edgecolor=INK, linewidth=0.5)
    axis.text(x + width / 2, y, label, ha="center", va="center", fontsize=6.5, color=INK, clip_on=True)
