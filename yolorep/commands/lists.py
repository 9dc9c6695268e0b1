"""The lists that `yolorep blocks` and `yolorep models` print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yolorep.hosts.shipped import shipped
from yolorep.hosts.shipped_sizes import SIZES

SIZES_ARE = (
    "parameters, FLOPs: in training, deployed; 80 classes and 640 pixels, a classifier 1000 and 224",
    "latency: of the deployed model, one image, OpenVINO, float32, two cores; - where no record has it",
)


def block_lines() -> Iterator[str]:
    """Yield the registered blocks with their options, then the kinds of identity branch."""
    from yolorep.blocks import BLOCKS, IDENTITIES  # needs torch, which the list of models does not
    from yolorep.blocks.registry import MASKED

    for name, block in sorted({**BLOCKS, **MASKED}.items()):
        yield f"{name:12} {(block.declare.__doc__ or '').splitlines()[0]}"
        if block.options:
            yield f"{'':12} options: {block.told_options()}"
    yield f"identity: {', '.join(IDENTITIES)}"


def model_lines() -> Iterator[str]:
    """Yield the shipped model YAMLs: blocks, parameters, FLOPs, a recorded latency, the first comment."""
    arrow = "\N{RIGHTWARDS ARROW}"
    yield f"{'model':31} {'blocks':13} {'parameters':>17} {'FLOPs':>17} {'latency':>7}"
    for name, path in sorted(shipped().items()):
        size = SIZES[name]
        sizes = f"{size.trained / 1e6:6.2f} {arrow} {size.deployed / 1e6:6.2f} M"
        flops = f"{size.flops:6.1f} {arrow} {size.deployed_flops:6.1f} G"
        latency = f"{size.latency:4.0f} ms" if size.latency else "-"
        yield f"{name:31} {size.blocks:3} x {size.block:7} {sizes:>17} {flops:>17} {latency:>7}  {_about(path)}"
    yield from SIZES_ARE


def _about(path: Path) -> str:
    """Return the first sentence of a YAML's comment."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").partition(". ")[0].rstrip(".") if first.startswith("#") else ""
