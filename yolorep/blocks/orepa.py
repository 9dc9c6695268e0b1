"""Online Convolutional Re-parameterization, Hu et al., CVPR 2022, arXiv 2204.00826.

y = BN(W * x), W = sum over branches of s_i W_i, with a learned scaling vector s_i, (out,), in the place of each
branch's batch norm. Without norms inside, the branches are linear in training too, and squeezed into W at every step.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.blocks.dbb import average, identity_1x1
from yolorep.blocks.linear import Filter
from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site

# Scaling vectors at the start, from the authors' code.
DENSE, AVERAGE, PRIOR, STACKED, ONE_BY_ONE, SEPARABLE = 0.25, 0.25, 0.0, 0.5, 1.0, 0.5
DENSE_1X1 = 1.0


@register_block("orepa", law="online")
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
    """(channels, kh, kw): cosines of rising frequency, over the height in one half of the channels, else the width."""
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
    """Two 1x1 convolutions, the one between equal numbers of channels beginning as the identity."""
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
