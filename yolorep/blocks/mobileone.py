"""MobileOne: An Improved One Millisecond Mobile Backbone, Vasu et al., CVPR 2023, arXiv 2206.04040.

y = sum of k BN(W_i * x) + BN(W_1x1 * x) + BN(x), on depthwise and on pointwise convolutions.
"""

from __future__ import annotations

from torch import nn

from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site


@register_block("mobileone")
def mobileone(site: Site, *, branches: int = 4) -> dict[str, nn.Module]:
    """MobileOne: `branches` convolutions of the dense size, itself included, a 1x1 scale branch and identity."""
    size = site.conv.kernel_size
    again = {f"branch_conv{i}": site.conv_bn(size, site.padding_of(size)) for i in range(2, branches + 1)}  # type: ignore[arg-type]
    scale = {} if site.pointwise else {"branch_1x1": site.conv_bn(1, site.border)}
    return {**again, **scale, **site.identity_branch()}
