"""Draws what deploying brings, from the recorded run in benchmarks/results/fps.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.svg import GREY, Drawing

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "fps.json"
FORMS = {
    "unfused": ("with its branches", "norm"),
    "deployed": ("deployed by yolorep", "one"),
    "stock": ("the stock model", "act"),
}
SIZE, LAYOUT = 640, "contiguous"
LEFT, UNIT, BAR, GROUP = 170, 250, 22, 112  # pixels: start of the bars, one unit of time, a bar, a group of bars


def draw(record: Path = RECORD) -> str:
    """The SVG bar chart: median time of an image, in units of the deployed model's, with quartiles."""
    content = json.loads(record.read_text())
    chosen = [r for r in content["results"] if r["size"] == SIZE and r["layout"] == LAYOUT]
    drawing = Drawing()
    width = LEFT + UNIT * 1.75
    drawing.text(width / 2, 26, f"{chosen[0]['what']}, {SIZE} px: time of an image, less is better", 14, weight="bold")
    for index, result in enumerate(chosen):
        _group(drawing, 48 + index * GROUP, result)
    bottom = 48 + len(chosen) * GROUP + 4
    machine = content["machine"]
    text = (
        f"medians and quartiles of {content['rounds']} interleaved rounds; {machine['processor']}, "
        f"{machine['threads']} threads, {content['date'][:10]}"
    )
    drawing.text(width / 2, bottom, text, 11, GREY)
    return drawing.svg(width, bottom + 16, "Time of an image: with branches, deployed, stock")


def _group(drawing: Drawing, top: float, result: dict[str, Any]) -> None:
    drawing.text(LEFT - 10, top + 12, f"batch {result['batch']}", 12, weight="bold", at="end")
    for row, (form, (label, kind)) in enumerate(FORMS.items()):
        y = top + 20 + row * (BAR + 5)
        spread = result["forms"][form]["times_deployed"]
        low, high = (LEFT + UNIT * spread[name] for name in ("low", "high"))
        drawing.text(LEFT - 10, y + 15, label, 12, at="end")
        drawing.bar(LEFT, y, UNIT * spread["median"], BAR, kind)
        drawing.line((low, y + BAR / 2), (high, y + BAR / 2))
        drawing.text(max(high, LEFT + UNIT * spread["median"]) + 8, y + 15, f"{spread['median']:.2f}", 12, at="start")
