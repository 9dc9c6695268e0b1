"""Scaling Up Your Kernels to 31x31, Ding et al., CVPR 2022, arXiv 2203.06717, and the depthwise 7x7 + 3x3 of RepViT
(arXiv 2307.09283) and YOLOv10 (arXiv 2405.14458).

y = BN(W_KxK * x) + BN(W_kxk * x) with a small k beside a large K.
"""

from __future__ import annotations

from torch import nn

from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site
from yolorep.errors import BlockError


@register_block("replk")
def replk(site: Site, *, small: int = 3) -> dict[str, nn.Module]:
    """RepLKNet: a small kernel beside a large one, depthwise or not; none beside kernels up to `small`."""
    if small % 2 == 0:
        raise BlockError(f"replk(small={small}): accepted: an odd kernel size")
    if min(site.conv.kernel_size) <= small:
        return site.asked_identity()
    return {f"branch_{small}x{small}": site.conv_bn(small, site.padding_of(small)), **site.asked_identity()}
