"""RepVGG: Making VGG-style ConvNets Great Again, Ding et al., CVPR 2021, arXiv 2101.03697.

y = BN(W_kxk * x) + BN(W_1x1 * x) + BN(x). Where the input cannot be added to the output, a 1x1 linear map with its own
batch norm replaces the last term.
"""

from __future__ import annotations

from torch import nn

from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site


@register_block("repvgg")
def repvgg(site: Site) -> dict[str, nn.Module]:
    """RepVGG: 1x1 and identity branches; identity alone beside a 1x1 convolution, which already is the 1x1 branch."""
    pointwise = {} if site.pointwise else {"branch_1x1": site.conv_bn(1, site.border)}
    return {**pointwise, **site.identity_branch()}


@register_block("plain")
def plain(site: Site) -> dict[str, nn.Module]:
    """No extra branch: convolution, batch norm, activation."""
    return {}
