"""Writes every drawn picture of the documentation: `python -m docs.draw`. A test tells when one is out of date."""

from __future__ import annotations

from docs import draw_blocks, draw_speed
from docs.svg import PICTURES
from yolorep.blocks import BLOCKS


def drawings() -> dict[str, str]:
    """File name in docs/pictures to SVG."""
    ours = [name for name, block in BLOCKS.items() if block.declare.__module__.startswith("yolorep.")]
    blocks = {f"block-{name}.svg": draw_blocks.draw(name) for name in ours}
    return {**blocks, "speed.svg": draw_speed.draw()}


def main() -> None:
    """Write the files, and print their names."""
    PICTURES.mkdir(exist_ok=True)
    for name, svg in drawings().items():
        (PICTURES / name).write_text(svg)
        print(name)


if __name__ == "__main__":
    main()
