"""RefConv: Re-parameterized Refocusing Convolution for Powerful ConvNets, Cai et al., arXiv 2310.10563.

y = BN((W_0 + G * W_0) * x), with W_0 the trained kernel, which is stored with the model and not trained. The refocusing
G is a convolution over W_0 itself: W_0 counts as an image of out * in / groups channels, one for each pair of an output
and an input channel, of kh x kw pixels. As in the authors' code, G has 3x3 taps, pads with zeros, and mixes as many
neighbouring channels as the dense convolution has groups: an ordinary convolution's kernels are refocused one by one, a
depthwise convolution's all by all. G starts at zero, so that the block computes what it was made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolorep.blocks.laws import Parts
from yolorep.blocks.linear import KernelMap
from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site

LARGEST = 3  # taps of G along an axis; 1 where the kernel has fewer


class Refocus(KernelMap):
    """G: maps a kernel (out, in // groups, kh, kw) to one of the same shape.

    weight: (out * in / groups, groups, 3, 3).

    Example:
        >>> refocus = Refocus(nn.Conv2d(2, 2, 3, bias=False))
        >>> _ = nn.init.ones_(refocus.weight)
        >>> refocus(torch.ones(2, 2, 3, 3))[0, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """

    def __init__(self, dense: nn.Conv2d, **place: Any) -> None:
        """Make the zero map for the kernel of `dense`. place: device and dtype."""
        super().__init__()
        out, per_group, *size = dense.weight.shape
        taps = [LARGEST if length >= LARGEST else 1 for length in size]
        self.weight = nn.Parameter(torch.zeros(out * per_group, dense.groups, *taps, **place))

    def forward(self, kernel: Tensor) -> Tensor:
        # A product for each group of channels: a convolution would be grouped into up to out * in parts.
        mixed, (height, width) = self.weight.shape[1], kernel.shape[2:]
        rows, columns = self.weight.shape[2:]
        image = kernel.reshape(-1, mixed, height, width)
        image = F.pad(image, (columns // 2, columns // 2, rows // 2, rows // 2))
        shifted = [image[:, :, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
        read = torch.stack(shifted, 2).flatten(3).flatten(1, 2)  # (groups of channels, mixed * taps, pixels)
        weight = self.weight.to(kernel).reshape(-1, mixed, mixed * rows * columns)
        return torch.bmm(weight, read).view(kernel.shape)

    def extra_repr(self) -> str:
        return str(tuple(self.weight.shape))


def refocused(parts: Parts) -> Tensor | None:
    """Return W_0 + G * W_0; None without G, beside a 1x1 kernel, and with an identity branch."""
    if len(parts.branches) != 1:
        return None
    (refocus,) = parts.branches.values()
    kernel = parts.conv.weight
    kernel = kernel.float() if kernel.dtype in (torch.float16, torch.bfloat16) else kernel
    return kernel + refocus(kernel)


@register_block("refconv", law="online", squeeze=refocused, frozen=True)
def refconv(site: Site) -> dict[str, nn.Module]:
    """RefConv: the trained kernel stays, and a trained convolution over it is added to it; for fine-tuning."""
    if site.pointwise:
        return {}
    refocus = Refocus(site.conv, **site.place).train(site.bn.training)
    return {"branch_refocus": refocus, **site.asked_identity(normalized=False)}
