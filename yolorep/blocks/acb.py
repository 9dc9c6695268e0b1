"""ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks, Ding et al.,
ICCV 2019, arXiv 1908.03930.

y = BN(W_kxk * x) + BN(W_1xk * x) + BN(W_kx1 * x).
"""

from __future__ import annotations

from torch import nn

from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site


@register_block("acb")
def acb(site: Site) -> dict[str, nn.Module]:
    """ACNet's asymmetric convolution block: 1xk and kx1 branches beside kxk."""
    height, width = site.conv.kernel_size
    skeleton = {"branch_1xk": (1, width), "branch_kx1": (height, 1)}
    fits = {} if site.pointwise else skeleton
    return {
        **{name: site.conv_bn(size, site.padding_of(size)) for name, size in fits.items()},
        **site.asked_identity(),
    }
