"""Draws each block from its declaration.

On the left the block as it is trained, on the right the one convolution that it becomes. Nothing is drawn by hand: the
columns are the branches that the block declares beside a convolution, so a picture cannot differ from the code.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from docs.svg import GREY, HEIGHT, WIDTH, Drawing
from yolorep.blocks import BNPad2d, ChannelMap, Conv_C3, Filter, Scale
from yolorep.blocks.linear import KernelMap
from yolorep.blocks.twin import FrozenConv2d

BRANCH, DENSE = "branch_", "dense_"  # what the names of a block's layers begin with
GAP, STEP = 16, 44  # between columns, from box to box
MARGIN, TOP = 20, 84
TIMES = "\N{MULTIPLICATION SIGN}"
# What each block is drawn beside: 64 to 64 channels, 3x3; a large depthwise kernel where the block is made for one.
SITES: dict[str, dict[str, Any]] = {"replk": {"k": 7, "g": 64}}
CAPTIONS = {
    "each": "each branch has a batch norm of its own; the results are added",
    "sum": "the branches are added; one batch norm follows the sum",
    "online": "the kernels of all branches are added to one before every step; one batch norm follows",
}


def layers(module: nn.Module, name: str = "") -> list[tuple[str, str]]:
    """(label, kind) of each layer of a branch, in order. name: what a fixed filter is called."""
    if isinstance(module, nn.Sequential):
        return [layer for inner in module for layer in layers(inner, name)]
    if isinstance(module, FrozenConv2d):
        return [(f"{_convolution(module)}, frozen", "fixed")]
    if isinstance(module, nn.Conv2d):
        return [(_convolution(module), "conv")]
    if isinstance(module, BNPad2d):
        return [("batch norm + pad", "norm")]
    if isinstance(module, _BatchNorm):
        return [("batch norm", "norm")]
    if isinstance(module, Scale):
        return [("learned scale", "gain")]
    if isinstance(module, Filter):
        return [(f"{name} {size_of(module)}", "fixed")]
    if isinstance(module, ChannelMap):
        return [(f"channels: {module.mode}", "fixed")]
    if isinstance(module, KernelMap):
        return [(f"{size_of(module)} over kernel", "conv")]
    return [(type(module).__name__, "fixed")]


def columns(block: Conv_C3) -> list[list[tuple[str, str]]]:
    """The dense path first, then one list of layers for each branch."""
    children = dict(block.named_children())
    dense = [layer for name, child in children.items() if name.startswith(("conv", DENSE)) for layer in layers(child)]
    if block.law == "each":
        dense += layers(block.bn)
    branches = {name.removeprefix(BRANCH): child for name, child in children.items() if name.startswith(BRANCH)}
    return [dense, *(layers(child, name) for name, child in branches.items())]


def draw(name: str) -> str:
    """The SVG picture of one registered block.

    Example:
        >>> draw("repvgg").count("batch norm")
        3
    """
    site = {"k": 3, **SITES.get(name, {})}
    block = Conv_C3(64, 64, block=name, **site)
    paths = columns(block)
    drawing, rows = Drawing(), max(map(len, paths))
    width = len(paths) * WIDTH + (len(paths) - 1) * GAP
    centre = MARGIN + width / 2
    after = [] if block.law == "each" else layers(block.bn)
    bottom = TOP + rows * STEP + (14 if len(paths) > 1 else -25)
    drawing.text(centre, 24, f"{name}, in training", 14, weight="bold")
    drawing.line((centre, 36), (centre, 50))
    for index, path in enumerate(paths):
        _path(drawing, MARGIN + WIDTH / 2 + index * (WIDTH + GAP), path, centre, bottom)
    if len(paths) > 1:
        drawing.plus(centre, bottom)
    y = _tail(drawing, centre, bottom + 11, [*after, ("SiLU", "act")])
    one = MARGIN + width + 150
    _deployed(drawing, one, block, y)
    drawing.line((MARGIN + width + 20, TOP + 60), (one - WIDTH / 2 - 18, TOP + 60), arrow=True)
    drawing.text((MARGIN + width + one - WIDTH / 2) / 2, TOP + 50, "deploy", 12, GREY)
    total = one + WIDTH / 2 + MARGIN
    drawing.text(total / 2, y + 26, CAPTIONS[block.law] if len(paths) > 1 else "no branches", 12, GREY)
    return drawing.svg(total, y + 40, f"Block {name}: {len(paths)} paths in training, one convolution deployed")


def _path(drawing: Drawing, x: float, path: list[tuple[str, str]], centre: float, bottom: float) -> None:
    """One branch, from the input at the top to the sum at the bottom."""
    drawing.line((centre, 50), (x, 50), (x, TOP), arrow=True)
    for row, (text, kind) in enumerate(path):
        y = TOP + row * STEP
        if row:
            drawing.line((x, y - STEP + HEIGHT), (x, y), arrow=True)
        drawing.box(x, y, text, kind)
    end = TOP + (len(path) - 1) * STEP + HEIGHT if path else TOP
    side = 0 if abs(x - centre) < 1 else 11 if x > centre else -11
    points = [(x, end), (x, bottom), (centre + side, bottom)] if side else [(x, end), (x, bottom - 11)]
    if bottom > end:  # else the block has this one path, and no sum
        drawing.line(*points, arrow=True)


def _tail(drawing: Drawing, x: float, y: float, after: list[tuple[str, str]]) -> float:
    for text, kind in after:
        drawing.line((x, y), (x, y + 16), arrow=True)
        drawing.box(x, y + 16, text, kind)
        y += 16 + HEIGHT
    return y


def _deployed(drawing: Drawing, x: float, block: Conv_C3, last: float) -> None:
    drawing.text(x, 24, "deployed", 14, weight="bold")
    start = TOP + 45
    drawing.line((x, 36), (x, start), arrow=True)
    drawing.box(x, start, _convolution(block.conv), "one")
    drawing.line((x, start + HEIGHT), (x, last - HEIGHT), arrow=True)
    drawing.box(x, last - HEIGHT, "SiLU", "act")


def size_of(layer: nn.Conv2d | Filter | KernelMap) -> str:
    """A kernel's height and width, as in 3x3."""
    return TIMES.join(map(str, layer.weight.shape[-2:]))


def _convolution(conv: nn.Conv2d) -> str:
    size = size_of(conv)
    if 1 < conv.groups == conv.in_channels:
        return f"depthwise {size}"
    return f"conv {size}"
