"""Drawn pictures are those of today's code and records, and every block has one."""

from __future__ import annotations

from docs.draw import drawings
from docs.examples import ROOT
from docs.svg import PICTURES


def test_pictures_are_up_to_date() -> None:
    stale = [name for name, svg in drawings().items() if _read(name) != svg]
    assert stale == [], "run: python -m docs.draw"


def _read(name: str) -> str:
    file = PICTURES / name
    return file.read_text() if file.is_file() else ""


def test_every_block_is_shown_in_both_languages() -> None:
    pages = [(ROOT / "docs" / page).read_text() for page in ("blocks.md", "zh/blocks.md")]
    blocks = [name.removeprefix("block-").removesuffix(".svg") for name in drawings() if name.startswith("block-")]
    assert [name for name in blocks if any(f"`{name}`" not in page for page in pages)] == []
    assert [name for name in blocks if f"pictures/block-{name}.svg" not in pages[0]] == []


def test_a_picture_shows_each_branch_of_its_block() -> None:
    drawn = drawings()
    assert drawn["block-repvgg.svg"].count(">batch norm<") == 3
    assert drawn["block-orepa.svg"].count(">learned scale<") == 6
    assert ">depthwise 7\N{MULTIPLICATION SIGN}7<" in drawn["block-replk.svg"]
