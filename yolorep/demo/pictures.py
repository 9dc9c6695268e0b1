"""The demo's pictures: detections against the truth; training curves beside the speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from yolorep.bench.report import COLOURS
from yolorep.bench.subjects import DEPLOYED, STOCK
from yolorep.demo.findings import Findings
from yolorep.demo.scenes import CLASSES
from yolorep.hosts.predictions import Answer

ROWS, COLUMNS = 3, 4
CLASS_COLOURS = ("#ffb000", "#fe6100", "#dc267f", "#785ef0", "#1e88e5")
CONFIDENCE = 0.25  # detections below it are not drawn
OUTLINE: dict[str, Any] = {"facecolor": "none", "linewidth": 1.6}


def mosaic(images: Sequence[Path], detect: Callable[[Path], Answer], file: Path) -> None:
    """Draw up to twelve images with the detections in colour and the truth in dashed white.

    detect: image file → predictions.
    """
    shown = images[: ROWS * COLUMNS]
    rows = ceil(len(shown) / COLUMNS)
    figure = _figure(3.0 * COLUMNS, 3.0 * rows + 0.5)
    for index, path in enumerate(shown):
        axis = figure.add_subplot(rows, COLUMNS, index + 1)
        image = imread(path)
        axis.imshow(image)
        for x1, y1, x2, y2 in _truth(path, len(image)):
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, ls=(0, (2, 2)), edgecolor="white", **OUTLINE))
        answer = detect(path)
        found = (answer[part].tolist() for part in ("class", "position", "confidence"))
        for label, (x1, y1, x2, y2), confidence in zip(*found, strict=True):
            if confidence < CONFIDENCE:
                continue
            colour = CLASS_COLOURS[int(label)]
            axis.add_patch(Rectangle((x1 - 1, y1 - 1), x2 - x1 + 2, y2 - y1 + 2, edgecolor=colour, **OUTLINE))
            tag = {"facecolor": colour, "edgecolor": "none", "pad": 1.0}
            name = f"{CLASSES[int(label)]} {confidence:.2f}"
            x, side = (x1, "left") if x1 < 0.7 * len(image) else (x2, "right")
            axis.text(x, max(y1 - 3, 6), name, ha=side, color="white", fontsize=7.5, bbox=tag, clip_on=True)
        axis.set_axis_off()
    handles: list[Any] = [Line2D([], [], color=c, lw=2, label=n) for c, n in zip(CLASS_COLOURS, CLASSES, strict=True)]
    handles.append(Line2D([], [], color="grey", lw=2, ls=(0, (2, 2)), label="truth (white)"))
    handles.append(Line2D([], [], ls="none", label=f"drawn from confidence {CONFIDENCE}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(file, dpi=130)


def summary(found: Findings, file: Path) -> None:
    """Draw validation mAP over the epochs for rep and stock, and images per second of each form."""
    figure = _figure(9.5, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    lines = {"rep": (found.rep.epochs, COLOURS[DEPLOYED]), "stock": (found.stock.epochs, COLOURS[STOCK])}
    for name, (epochs, colour) in lines.items():
        numbers = range(1, len(epochs) + 1)
        for metric, style in (("map50", "-"), ("map50_95", "--")):
            label = f"{name}, {'mAP50' if metric == 'map50' else 'mAP50-95'}"
            left.plot(numbers, [getattr(e, metric) for e in epochs], style, color=colour, marker="o", ms=3, label=label)
    left.set(xlabel="epoch", ylabel="validation mAP", ylim=(0, 1.05), title="training")
    left.set_xlim(0.5, max(len(epochs) for epochs, _ in lines.values()) + 0.5)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    left.legend(frameon=False, loc="upper left", fontsize=8)
    fps = found.fps
    bars = right.bar(list(fps), list(fps.values()), 0.6, color=[COLOURS[form] for form in fps])
    right.bar_label(bars, fmt="%.0f", padding=2)
    speed = found.speed
    right.set(ylabel="images per second", title=f"speed on {speed.device}, batch {speed.batch}, {speed.size} px")
    right.margins(y=0.12)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _truth(image: Path, side: int) -> list[tuple[float, ...]]:
    """Return the corners (x1, y1, x2, y2) of the labelled boxes of an image, in pixels."""
    label = image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"
    rows = np.loadtxt(label, ndmin=2)[:, 1:] * side
    corners = np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], axis=1)
    return [tuple(row) for row in corners.tolist()]
