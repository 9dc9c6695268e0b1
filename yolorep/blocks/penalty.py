"""Weight decay on what RepVGG blocks compute together, instead of on each branch (arXiv 2101.03697, authors' code)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3

TINY = 1e-12  # under a sum of squared scales that may be zero in a channel that is pruned


def equivalent_l2(model: nn.Module) -> Tensor:
    """The squared norm of the equivalent kernels of every RepVGG block in `model`, a scalar to add to a loss.

    Where the kxk and the 1x1 kernel meet, at the centre, it is that of their sum as the batch norms scale it, in units
    that make it comparable to the usual one; elsewhere that of the kxk kernel. Use it as
    ``loss + weight_decay / 2 * equivalent_l2(model)``, with no weight decay on those convolutions in the optimizer.
    0 where `model` has no such block.
    """
    blocks = [m for m in model.modules() if isinstance(m, Conv_C3) and not m.deployed]
    penalties = [_penalty(block) for block in blocks if block.block == "repvgg" and hasattr(block, "branch_1x1")]
    return torch.stack(penalties).sum() if penalties else torch.zeros(())


def _penalty(block: Conv_C3) -> Tensor:
    small: Any = block.branch_1x1
    dense, scale, small_scale = block.conv.weight, _scale(block.bn), _scale(small.bn)
    height, width = (size // 2 for size in block.conv.kernel_size)
    centre = dense[:, :, height : height + 1, width : width + 1]
    together = (centre * scale + small.conv.weight * small_scale).square() / (
        scale.square() + small_scale.square()
    ).clamp_min(TINY)
    return dense.square().sum() - centre.square().sum() + together.sum()


def _scale(norm: Any) -> Tensor:
    """gamma / sigma of a batch norm by its running statistics, (out, 1, 1, 1), as a constant."""
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None, None]
