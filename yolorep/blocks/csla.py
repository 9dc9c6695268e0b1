"""Constant-scale linear addition: Re-parameterizing Your Optimizers rather than Architectures, Ding et al., ICLR 2023,
arXiv 2205.15242.

y = BN((W_kxk + s W_1x1 + D) * x), with a constant s and a diagonal D that starts as the identity. All kernels are
merged into one before the convolution, so that a training step costs about as much as a plain one. The scale of the
whole sum has no effect before the batch norm, so that the kxk kernel needs no scale of its own. The authors start the
scales of both kernels at sqrt(2 / l) in the l-th block of a stage (1 in the first), and that of the identity at 1; in
these terms s = 1 and D starts at sqrt(l / 2), 0.7 to 1.2 in stages of up to four blocks. Here both are 1.

`repopt` is the same training as a property of the optimizer: the model stays stock, and `training.gradient_mask`
multiplies its gradients.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from yolorep.algebra import centre
from yolorep.blocks.laws import MASK, Parts
from yolorep.blocks.linear import FixedScale, Scale
from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site
from yolorep.errors import BlockError
from yolorep.training.kernel_scales import Scales
from yolorep.training.merged_conv import KernelSum, diagonal_of

SMALL, IDENTITY = "branch_1x1", "branch_identity"
LEARNED = "learned"


def merged(parts: Parts) -> KernelSum | None:
    """Return the kernels whose sum the block convolves with; None if the identity is not a diagonal kernel.

    The general algebra then computes the sum.
    """
    layers: Any = parts.branches
    identity, small = layers.get(IDENTITY), layers.get(SMALL)
    if identity is not None and not _is_diagonal(identity):
        return None
    kernel, scale = (small.conv.weight, small.scale.weight) if small is not None else (None, None)
    diagonal = None if identity is None else identity.weight
    return KernelSum(parts.conv.weight, kernel, scale, diagonal, parts.conv.groups)


@register_block("csla", law="online", squeeze=merged)
def csla(
    site: Site, *, small: float = 1.0, scales: Literal["constant", "learned"] = "constant"
) -> dict[str, nn.Module]:
    """RepOptimizer's training form: 1x1 and identity kernels and one batch norm after the sum, at a plain step's cost.

    small: scale of the 1x1 kernel. scales: "learned" trains that scale too, one value for each output channel.
    """
    if site.pointwise:
        return _identity(site)
    scale = (Scale if scales == LEARNED else FixedScale)(site.conv.out_channels, small, **site.place)
    return {SMALL: site.sequence(conv=site.convolution(1, site.border), scale=scale), **_identity(site)}


@register_block("repopt", law=MASK)
def repopt(site: Site, *, small: float = 1.0) -> dict[str, nn.Module]:
    """RepOptimizer: the stock layer, trained as csla by its optimizer; no branch, no cost, stock checkpoints."""
    return csla(site, small=small)


def kernel_scales(branches: dict[str, nn.Module], conv: nn.Conv2d) -> Scales:
    """Return the scales of the 1x1 kernel and of the diagonal in the sum, in the shape of the weight of `conv`.

    Raises:
        BlockError: the identity is not a diagonal kernel of its own.
    """
    layers: Any = branches
    identity = layers.get(IDENTITY)
    if identity is not None and not _is_diagonal(identity):
        raise BlockError("repopt has a mask for identity auto, paper and none; accepted: one of them, or block csla")
    scales = Scales(*(torch.zeros_like(conv.weight).detach() for _ in range(2)))
    if SMALL in layers:
        centre(scales.small).add_(layers[SMALL].scale.weight.detach().abs()[:, None, None, None])
    if identity is not None:
        diagonal_of(centre(scales.diagonal), conv.groups).fill_(1)
    return scales


def _identity(site: Site) -> dict[str, nn.Module]:
    """Return the identity as a diagonal kernel of its own where it fits, else what `site.identity` names."""
    if site.identity == "none" or (site.identity == "auto" and not site.keeps_shape):
        return {}
    if not site.keeps_shape:
        return site.identity_branch(normalized=False)
    channels = site.conv.in_channels
    diagonal = site.convolution(1, groups=channels)
    nn.init.ones_(diagonal.weight)
    return {IDENTITY: diagonal}


def _is_diagonal(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels
