"""How far the blocks of a model are from their folded forms, on noise: a few pixels for each block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.numerics import TOLERANCE, full_float32, relative_error
from yolorep.precision import has_values


class Output(NamedTuple):
    """A block, noise, and the block's output for it."""

    block: nn.Module
    x: Tensor
    y: Tensor


@torch.no_grad()
def outputs_on_noise(model: nn.Module) -> list[Output]:
    """Return the output of each rep block of a model in evaluation mode, without calling the block's hooks.

    Blocks in half precision and blocks without values are left out.
    """
    random = torch.Generator().manual_seed(0)
    result = []
    for block in model.modules():
        if not isinstance(block, Conv_C3) or block.deployed:
            continue
        weight, conv = block.conv.weight, block.conv
        if weight.dtype in TOLERANCE and has_values(weight):
            sides = [d * (k - 1) + 4 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
            x = torch.rand(1, conv.in_channels, *sides, generator=random).to(weight)
            result.append(Output(block, x, _forward(block, x)))
    return result


@torch.no_grad()
def largest_error(outputs: list[Output]) -> float | None:
    """Return the largest relative error of the same blocks, now folded in place; None if there are no outputs."""
    return max((relative_error(output.y, _forward(output.block, output.x)) for output in outputs), default=None)


def _forward(block: nn.Module, x: Tensor) -> Tensor:
    with full_float32(), torch.autocast(x.device.type, enabled=False):
        return type(block).forward(block, x)
