"""Online Convolutional Re-parameterization, Hu et al., CVPR 2022, arXiv 2204.00826.

y = BN(W * x), W = sum over branches of s_i W_i. A learned scaling vector s_i, (out,), replaces the batch norm of each
branch. Without norms inside, the branches are linear in training too, and are squeezed into W at every step.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolorep.blocks.dbb import average, identity_1x1
from yolorep.blocks.laws import Parts
from yolorep.blocks.linear import Filter
from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site

# Scaling vectors at the start, from the authors' code.
DENSE, AVERAGE, PRIOR, STACKED, ONE_BY_ONE, SEPARABLE = 0.25, 0.25, 0.0, 0.5, 1.0, 0.5
DENSE_1X1 = 1.0


def squeezed(parts: Parts) -> Tensor | None:
    """Return W, (out, in // groups, kh, kw): the sum of all kernels, each times its scaling vector.

    None for blocks with an identity branch, which the general algebra adds up.
    """
    layers: Any = parts.branches
    if "branch_identity" in layers:
        return None
    weight = parts.conv.weight * _column(parts.dense_path["dense_scale"])
    if "branch_1x1_1x1" in layers:
        stacked = layers["branch_1x1_1x1"]
        return torch.addcmul(weight, _stacked_kernel(stacked, parts.conv), _column(stacked.scale))
    for name in ("branch_average", "branch_prior"):
        branch = layers[name]
        weight = torch.addcmul(weight, branch.conv.weight, branch.filter.weight.to(weight) * _column(branch.scale))
    stacked, separable, small = layers["branch_1x1_kxk"], layers["branch_separable"], layers["branch_1x1"]
    weight = torch.addcmul(weight, _stacked_kernel(stacked, parts.conv), _column(stacked.scale))
    weight = torch.addcmul(weight, _separable_kernel(separable, parts.conv), _column(separable.scale))
    height, width = ((size - 1) // 2 for size in weight.shape[2:])
    return weight + F.pad(small.conv.weight * _column(small.scale), (width, width, height, height))


def _column(scale: Any) -> Tensor:
    return scale.weight[:, None, None, None]


def _stacked_kernel(branch: Any, dense: nn.Conv2d) -> Tensor:
    """Return the kernel of conv2(conv1(x)) for a pointwise conv1: a product over the channels in between."""
    groups, (out, _, *size) = dense.groups, branch.conv2.weight.shape
    second = branch.conv2.weight.reshape(groups, out // groups, -1, size[0] * size[1]).transpose(2, 3)
    first = branch.conv1.weight.reshape(groups, -1, branch.conv1.weight.shape[1])
    kernel = torch.bmm(second.flatten(1, 2), first).view(groups, out // groups, size[0] * size[1], -1)
    return kernel.transpose(2, 3).reshape(out, -1, *size)


def _separable_kernel(branch: Any, dense: nn.Conv2d) -> Tensor:
    """Return the kernel of pointwise(depthwise(x)): a product over the depthwise filters of each input channel."""
    groups, out = dense.groups, dense.out_channels
    per_group, size = dense.in_channels // groups, branch.depthwise.weight.shape[2:]
    filters = branch.depthwise.weight.reshape(dense.in_channels, -1, size[0] * size[1])
    mixing = branch.pointwise.weight.reshape(groups, out // groups, per_group, -1).transpose(1, 2).flatten(0, 1)
    kernel = torch.bmm(mixing, filters).view(groups, per_group, out // groups, -1)
    return kernel.transpose(1, 2).reshape(out, per_group, *size)


@register_block("orepa", law="online", squeeze=squeezed)
def orepa(site: Site, *, expansion: int = 8) -> dict[str, nn.Module]:
    """OREPA: 1x1, 1x1 then kxk, average, frequency prior, separable; squeezed into one kernel at every step."""
    if site.pointwise:
        return {"dense_scale": site.scale(DENSE_1X1), "branch_1x1_1x1": _stacked_1x1(site), **_identity(site)}
    dense: Any = site.conv
    size = dense.kernel_size
    padding = site.padding_of(size)
    into, out = dense.in_channels, dense.out_channels
    inside, many = into * (1 if dense.groups <= 4 else 2), into * expansion
    return {
        "dense_scale": site.scale(DENSE),
        "branch_average": _after_1x1(site, average(site), AVERAGE),
        "branch_prior": _after_1x1(site, _prior(site), PRIOR),
        "branch_1x1_kxk": site.sequence(
            conv1=identity_1x1(site, inside, padding),
            conv2=site.convolution(size, channels=(inside, out)),
            scale=site.scale(STACKED),
        ),
        "branch_1x1": site.sequence(conv=site.convolution(1, site.border), scale=site.scale(ONE_BY_ONE)),
        "branch_separable": site.sequence(
            depthwise=site.convolution(size, padding, channels=(into, many), groups=into),
            pointwise=site.convolution(1, channels=(many, out), stride=(1, 1)),
            scale=site.scale(SEPARABLE),
        ),
        **_identity(site),
    }


def frequency_prior(channels: int, size: tuple[int, int]) -> Tensor:
    """Return (channels, kh, kw): cosines of rising frequency.

    Over the height in the first half of the channels, over the width in the second.
    """
    (height, width), half = size, channels / 2
    index = torch.arange(channels, dtype=torch.float64)
    rows, cols = (pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (height, width))
    vertical = torch.cos((index + 1)[:, None] * rows)[:, :, None].expand(-1, -1, width)
    horizontal = torch.cos((index + 1 - half)[:, None] * cols)[:, None].expand(-1, height, -1)
    return torch.where((index < half)[:, None, None], vertical, horizontal).float()


def _after_1x1(site: Site, fixed: Filter, gain: float) -> nn.Sequential:
    padding = site.padding_of(site.conv.kernel_size)  # type: ignore[arg-type]
    # Padded before the 1x1, which maps zero to zero, so that the two compose at any border.
    return site.sequence(conv=site.convolution(1, padding, stride=(1, 1)), filter=fixed, scale=site.scale(gain))


def _prior(site: Site) -> Filter:
    dense: Any = site.conv
    taps = frequency_prior(dense.out_channels, dense.kernel_size).to(**site.place)
    return Filter(taps, stride=dense.stride, dilation=dense.dilation)


def _stacked_1x1(site: Site) -> nn.Sequential:
    """Return two 1x1 convolutions; the one with as many output as input channels starts as the identity."""
    into, out = site.conv.in_channels, site.conv.out_channels
    if out > into:
        return site.sequence(
            conv1=identity_1x1(site, into, site.border), conv2=site.convolution(1), scale=site.scale(STACKED)
        )
    second = site.convolution(1, channels=(out, out))
    with torch.no_grad():
        second.weight.copy_(torch.eye(out // second.groups).repeat(second.groups, 1)[:, :, None, None])
    return site.sequence(conv1=site.convolution(1, site.border, stride=(1, 1)), conv2=second, scale=site.scale(STACKED))


def _identity(site: Site) -> dict[str, nn.Module]:
    return site.asked_identity(normalized=False)
