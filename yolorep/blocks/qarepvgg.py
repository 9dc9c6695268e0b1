"""Make RepVGG Greater Again: A Quantization-aware Approach, Chu et al., AAAI 2024, arXiv 2212.01593.

RepVGG loses accuracy in 8 bits because the sum of normalized branches has outlying variances. The paper removes batch
norms step by step:
    S2: no batch norm on the identity. S3: none on the 1x1 branch either. S4: S3 with a batch norm after the sum.
S4 is QARepVGG. S2 and S3 are its ablations.
"""

from __future__ import annotations

from torch import nn

from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site


@register_block("qarepvgg", law="sum")
def qarepvgg(site: Site) -> dict[str, nn.Module]:
    """QARepVGG (S4): BN(BN(W_kxk * x) + W_1x1 * x + x); one batch norm after the sum keeps 8-bit ranges tight."""
    return {"dense_bn": site.batch_norm(site.conv.out_channels), **_bare_1x1(site), **_bare_identity(site)}


@register_block("qarepvgg_s2")
def qarepvgg_s2(site: Site) -> dict[str, nn.Module]:
    """QARepVGG's ablation S2: BN(W_kxk * x) + BN(W_1x1 * x) + x."""
    pointwise = {} if site.pointwise else {"branch_1x1": site.conv_bn(1, site.border)}
    return {**pointwise, **_bare_identity(site)}


@register_block("qarepvgg_s3")
def qarepvgg_s3(site: Site) -> dict[str, nn.Module]:
    """QARepVGG's ablation S3: BN(W_kxk * x) + W_1x1 * x + x."""
    return {**_bare_1x1(site), **_bare_identity(site)}


def _bare_1x1(site: Site) -> dict[str, nn.Module]:
    return {} if site.pointwise else {"branch_1x1": site.convolution(1, site.border)}


def _bare_identity(site: Site) -> dict[str, nn.Module]:
    """Return the input times a learned gain, which starts at 1 as in the paper and can be set to 0."""
    return site.identity_branch(normalized=False)
