"""Weight decay on what RepVGG blocks compute together, instead of on each branch (arXiv 2101.03697, authors' code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.errors import BlockError

TINY = 1e-12  # under a sum of squared scales that may be zero in a channel that is pruned


def equivalent_l2(model: nn.Module) -> Tensor:
    """The squared norm of the equivalent kernels of every RepVGG block in `model`, a scalar to add to a loss.

    Where the kxk and the 1x1 kernel meet, at the centre, it is that of their sum as the batch norms scale it, in units
    that make it comparable to the usual one; elsewhere that of the kxk kernel. Use it as
    ``loss + weight_decay / 2 * equivalent_l2(model)``, with no weight decay on those convolutions in the optimizer, or
    let `decay_equivalent_kernels_` do both. 0 where `model` has no such block.
    """
    blocks = _covered(model)
    return penalties(blocks, branch_scales(blocks)).sum() if blocks else torch.zeros(())


def penalized_blocks(model: nn.Module) -> list[Conv_C3]:
    """The blocks in `model` whose equivalent kernel is defined: RepVGG's, where they have a 1x1 beside a kxk kernel.

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
    """The two kernels of a block whose norm is penalized, (out, in // groups, kh, kw) and (out, in // groups, 1, 1)."""
    dense, small = block.conv, block.branch_1x1
    return dense.weight, small.conv.weight  # type: ignore[return-value, union-attr]


def branch_scales(blocks: Sequence[Conv_C3]) -> Tensor:
    """gamma / sigma of the kxk's and of the 1x1's batch norm, block after block, by running statistics; constants."""
    norms: list[Any] = [norm for block in blocks for norm in (block.bn, block.branch_1x1.bn)]  # type: ignore[union-attr]
    return torch.cat([(norm.weight / (norm.running_var + norm.eps).sqrt()).detach() for norm in norms])


def penalties(blocks: Sequence[Conv_C3], scales: Tensor) -> Tensor:
    """The squared norm of each block's equivalent kernel, (blocks,). scales: as of `branch_scales`."""
    parts = iter(scales.split([block.conv.out_channels for block in blocks for _ in range(2)]))
    return torch.stack([_penalty(*kernels(block), next(parts), next(parts)) for block in blocks])


def _penalty(dense: Tensor, small: Tensor, dense_scale: Tensor, small_scale: Tensor) -> Tensor:
    scale, other = (s[:, None, None, None] for s in (dense_scale, small_scale))
    height, width = (size // 2 for size in dense.shape[2:])
    centre = dense[:, :, height : height + 1, width : width + 1]
    together = (centre * scale + small * other).square() / (scale.square() + other.square()).clamp_min(TINY)
    return dense.square().sum() - centre.square().sum() + together.sum()


def _covered(model: nn.Module) -> list[Conv_C3]:
    return [b for b in _undeployed(model) if b.block.partition("(")[0].strip() == "repvgg" and hasattr(b, "branch_1x1")]


def _undeployed(model: nn.Module) -> list[Conv_C3]:
    return [m for m in model.modules() if isinstance(m, Conv_C3) and not m.deployed]
