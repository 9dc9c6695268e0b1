"""Boxes, bars, lines and text as an SVG picture whose bytes depend on nothing but what is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

PICTURES = Path(__file__).resolve().parent / "pictures"
WIDTH, HEIGHT = 108, 30  # of a box
COLOURS = {
    "conv": "#c7d8f5",
    "norm": "#fde2b8",
    "gain": "#e3d4f1",
    "fixed": "#d9ead3",
    "act": "#eeeeee",
    "one": "#a9dfbf",
}
INK, GREY = "#1f2430", "#6b7280"
FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass
class Drawing:
    """SVG elements, and the extent of what they cover."""

    elements: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, text: str, kind: str) -> None:
        """A labelled layer whose top edge's middle is (x, y)."""
        left, middle = x - WIDTH / 2, y + HEIGHT / 2
        self.elements.append(
            f"<rect x='{left:g}' y='{y:g}' width='{WIDTH}' height='{HEIGHT}' rx='5' fill='{COLOURS[kind]}' "
            f"stroke='{INK}' stroke-width='0.8'/>"
        )
        self.text(x, middle + 4, text, 12.5)

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A horizontal bar whose left top corner is (x, y)."""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{width:.1f}' height='{height:g}' fill='{COLOURS[kind]}' "
            f"stroke='{INK}' stroke-width='0.8'/>"
        )

    def text(
        self, x: float, y: float, text: str, size: float, colour: str = INK, weight: str = "normal", at: str = "middle"
    ) -> None:
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' text-anchor='{at}' fill='{colour}' "
            f"font-weight='{weight}' {FONT}>{escape(text)}</text>"
        )

    def line(self, *points: tuple[float, float], arrow: bool = False) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = " marker-end='url(#arrow)'" if arrow else ""
        self.elements.append(f"<polyline points='{path}' fill='none' stroke='{INK}' stroke-width='1.1'{end}/>")

    def plus(self, x: float, y: float) -> None:
        self.elements.append(f"<circle cx='{x:g}' cy='{y:g}' r='11' fill='white' stroke='{INK}' stroke-width='1.1'/>")
        self.line((x - 5, y), (x + 5, y))
        self.line((x, y - 5), (x, y + 5))

    def svg(self, width: float, height: float, title: str) -> str:
        arrow = (
            "<defs><marker id='arrow' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
            f"orient='auto'><path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker></defs>"
        )
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' "
                f"height='{height:g}' role='img'>",
                f"<title>{escape(title)}</title>",
                arrow,
                f"<rect width='{width:g}' height='{height:g}' rx='8' fill='white'/>",
                *self.elements,
                "</svg>",
                "",
            ]
        )
