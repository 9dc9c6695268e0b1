"""Diverse Branch Block: Building a Convolution as an Inception-like Unit, Ding et al., CVPR 2021, arXiv 2103.13425.

y = BN(W_kxk * x) + BN(W_1x1 * x) + BN(W'_kxk * BN(W'_1x1 * x)) + BN(average(BN(W''_1x1 * x))).

The inner batch norms pad with their output for zero (`BNPad2d`), so that the border folds exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolorep.blocks.linear import BNPad2d, Filter
from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Pair, Site
from yolorep.errors import BlockError


@register_block("dbb")
def dbb(site: Site) -> dict[str, nn.Module]:
    """Diverse Branch Block: 1x1, 1x1 then kxk, 1x1 then average. Depthwise: average and 1x1 then kxk."""
    if site.pointwise:
        return site.asked_identity()
    if site.conv.padding_mode != "zeros":
        raise BlockError(f"dbb beside padding_mode={site.conv.padding_mode!r}; accepted: zero padding")
    size: Any = site.conv.kernel_size
    inside = site.conv.in_channels * (2 if site.depthwise else 1)
    one_by_one = {} if site.depthwise else {"branch_1x1": site.conv_bn(1, site.border)}
    return {
        **one_by_one,
        "branch_1x1_kxk": site.sequence(
            conv1=identity_1x1(site, inside),
            bn1=_padding_norm(site, inside, site.padding_of(size)),
            conv2=site.convolution(size, channels=(inside, site.conv.out_channels)),
            bn2=site.batch_norm(site.conv.out_channels),
        ),
        "branch_average": _average(site, size),
        **site.asked_identity(),
    }


def identity_1x1(site: Site, inside: int, padding: Pair = (0, 0)) -> nn.Conv2d:
    """Return a 1x1 convolution to `inside` channels at stride 1, initially the identity, repeated if there are more."""
    conv = site.convolution(1, padding, channels=(site.conv.in_channels, inside), stride=(1, 1))
    with torch.no_grad():
        out, per_group = conv.weight.shape[:2]
        columns = torch.arange(out, device=conv.weight.device) % (out // conv.groups) % per_group
        conv.weight.copy_(nn.functional.one_hot(columns, per_group)[:, :, None, None])
    return conv


def average(site: Site, padding: Pair = (0, 0)) -> Filter:
    """Return the mean over the dense kernel's taps of each output channel, at the dense stride and dilation."""
    dense: Any = site.conv
    taps = torch.full(
        (dense.out_channels, *dense.kernel_size), 1 / (dense.kernel_size[0] * dense.kernel_size[1]), **site.place
    )
    return Filter(taps, stride=dense.stride, padding=padding, dilation=dense.dilation)


def _average(site: Site, size: Pair) -> nn.Sequential:
    out, padding = site.conv.out_channels, site.padding_of(size)
    norm = site.batch_norm(out)
    if site.depthwise and site.conv.in_channels == out:
        return site.sequence(average=average(site, padding), bn=norm)
    conv = site.convolution(1, channels=(site.conv.in_channels, out), stride=(1, 1))
    return site.sequence(conv=conv, bn1=_padding_norm(site, out, padding), average=average(site), bn2=norm)


def _padding_norm(site: Site, features: int, padding: Pair) -> BNPad2d:
    return BNPad2d(site.batch_norm(features), padding)
