"""The squared norm of the equivalent kernels of RepVGG blocks (arXiv 2101.03697, authors' code).

With s = gamma / sigma of the kxk's batch norm, o that of the 1x1's, c the centre tap of the kxk kernel and k the 1x1
kernel, the penalty of one block is

    sum(kxk ** 2) - sum(c ** 2) + sum((s c + o k) ** 2 / (s ** 2 + o ** 2)),

that is, the ordinary penalty, in which the norm of the two centre taps' sum, as the batch norms scale it, replaces the
norm of the centre tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolorep.algebra import centre
from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.registry import name_of
from yolorep.errors import BlockError

TINY = 1e-12  # lower bound of s ** 2 + o ** 2, which is zero in a pruned channel


def equivalent_l2(model: nn.Module) -> Tensor:
    """Return the penalty of all RepVGG blocks in `model`, a scalar to add to a loss.

    Use it as ``loss + weight_decay / 2 * equivalent_l2(model)``, with no weight decay on those convolutions in the
    optimizer, or let `decay_equivalent_kernels_` do both. The batch norms count as constants. 0 if there is no block.

    Example:
        >>> from yolorep import Conv_C3
        >>> equivalent_l2(Conv_C3(4, 4)).dim()
        0
    """
    blocks = _covered(model)
    if not blocks:
        return torch.zeros(())
    shares = centre_shares(blocks)
    return torch.stack([_penalty(block, *share) for block, share in zip(blocks, shares, strict=True)]).sum()


def penalized_blocks(model: nn.Module) -> list[Conv_C3]:
    """Return the blocks in `model` that have a penalty: RepVGG blocks with a 1x1 beside a kxk kernel.

    Raises:
        BlockError: there are none.
    """
    blocks = _covered(model)
    if not blocks:
        others = sorted({m.block for m in _undeployed(model)})
        has = f"block {', '.join(others)}" if others else "no rep blocks"
        raise BlockError(f"equivalent_l2 is defined for block repvgg, by its kxk and 1x1 kernels; this model has {has}")
    return blocks


def kernels(block: Conv_C3) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the kxk and the 1x1 kernel of a block: (out, in // groups, kh, kw) and (out, in // groups, 1, 1)."""
    dense, small = block.conv, block.branch_1x1
    return dense.weight, small.conv.weight  # type: ignore[return-value, union-attr]


@torch.no_grad()
def centre_shares(blocks: Sequence[Conv_C3]) -> list[tuple[Tensor, Tensor]]:
    """Return (a, b) of each block, (out, 1, 1, 1) each: s and o divided by sqrt(s ** 2 + o ** 2), as constants.

    The squared norm of a c + b k is the centre's part of the penalty. Where processes train together, s and o are
    averaged over them, so that all processes apply the same gradient.
    """
    norms: list[Any] = [norm for block in blocks for norm in (block.bn, block.branch_1x1.bn)]  # type: ignore[union-attr]
    sigma = torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms])
    torch._foreach_sqrt_(sigma)
    scales = _agreed(list(torch._foreach_div([norm.weight for norm in norms], sigma)))
    squares = torch._foreach_mul(scales[::2], scales[::2])
    torch._foreach_addcmul_(squares, scales[1::2], scales[1::2])
    torch._foreach_clamp_min_(squares, TINY)
    torch._foreach_sqrt_(squares)
    parts = (torch._foreach_div(scales[first::2], squares) for first in range(2))
    return [(a[:, None, None, None], b[:, None, None, None]) for a, b in zip(*parts, strict=True)]


def _agreed(scales: list[Tensor]) -> list[Tensor]:
    """Return the mean of `scales` over the processes of a distributed training."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return scales
    together = torch.cat(scales)
    dist.all_reduce(together)
    return list((together / dist.get_world_size()).split([len(scale) for scale in scales]))


def _penalty(block: Conv_C3, a: Tensor, b: Tensor) -> Tensor:
    dense, small = kernels(block)
    middle = centre(dense)
    return dense.square().sum() - middle.square().sum() + (a * middle + b * small).square().sum()


def _covered(model: nn.Module) -> list[Conv_C3]:
    return [b for b in _undeployed(model) if name_of(b.block) == "repvgg" and hasattr(b, "branch_1x1")]


def _undeployed(model: nn.Module) -> list[Conv_C3]:
    return [m for m in model.modules() if isinstance(m, Conv_C3) and not m.deployed]
