"""The demo's last page: a small HTML file beside the pictures that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from yolorep.bench.subjects import DEPLOYED, STOCK, UNFUSED
from yolorep.demo.findings import Findings

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
code, pre { background: #f4f4f4; border-radius: 4px; padding: .1rem .3rem; }
pre { padding: .7rem; white-space: pre-wrap; }
.note { color: #555; }
"""


def page(found: Findings, commands: Sequence[str]) -> str:
    """Return the report as HTML. commands: what to run next."""
    parts = [
        "<h1>yolorep demo</h1>",
        f"<p>{escape(found.what_rep_did)} After training, <code>deploy</code> folded all branches: the deployed model "
        "is stock YOLOv5n, layer for layer.</p>",
        f"<h2>Rep beside stock: {found.plan.amount} each</h2>",
        _table(["", "rep", "stock", "difference"], _training(found)),
        f'<p class="note">{escape(found.verdict)}</p>',
        '<img src="summary.png" alt="validation mAP of rep and stock over the epochs, and images per second">',
        "<h2>Deployed: the same function</h2>",
        _table(["", "with branches", "deployed", "difference"], _deployed(found)),
        "<h2>What it detects</h2>",
        '<img src="detections.png" alt="validation images with detections and truth">',
        "<h2>Next</h2>",
        f"<pre>{escape(chr(10).join(commands))}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>yolorep demo</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _training(found: Findings) -> list[list[str]]:
    """Return the rows that compare the training of the rep and of the stock model."""
    rep, stock = found.rep.best, found.stock.best
    seconds = found.rep.seconds, found.stock.seconds
    trained, plain, deployed = (found.parameters[form] for form in (UNFUSED, STOCK, DEPLOYED))
    return [
        ["mAP50", f"{rep.map50:.3f}", f"{stock.map50:.3f}", f"{rep.map50 - stock.map50:+.3f}"],
        ["mAP50-95", f"{rep.map50_95:.3f}", f"{stock.map50_95:.3f}", f"{rep.map50_95 - stock.map50_95:+.3f}"],
        ["training, seconds", f"{seconds[0]:.0f}", f"{seconds[1]:.0f}", f"{seconds[0] / seconds[1]:.2f} times"],
        ["parameters in training", f"{trained:,}", f"{plain:,}", f"{trained - plain:+,}"],
        ["parameters deployed", f"{deployed:,}", f"{deployed:,}", "0"],
    ]


def _deployed(found: Findings) -> list[list[str]]:
    """Return the rows that compare the rep model with its deployed form."""
    fps = found.fps
    branches, deployed = fps[UNFUSED], fps[DEPLOYED]
    return [
        *(
            [name, f"{value:.4f}", f"{found.after[name]:.4f}", f"{found.after[name] - value:+.1e}"]
            for name, value in found.before.items()
        ),
        ["outputs, largest relative error", "", "", f"{found.report.max_rel:.1e}"],
        ["boxes on the validation images", str(found.boxes.found), "", f"{found.boxes.differing} differ"],
        ["images per second", f"{branches:.0f}", f"{deployed:.0f}", f"{deployed / branches:.2f} times"],
        ["images per second, stock", "", f"{fps[STOCK]:.0f}", ""],
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
