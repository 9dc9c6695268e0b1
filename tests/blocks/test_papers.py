"""Each block against its paper's own formula, written out with torch functions: training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomize_, relative_error
from yolorep import Conv_C3
from yolorep.blocks.linear import KernelMap
from yolorep.blocks.orepa import frequency_prior
from yolorep.blocks.registry import BLOCKS

Formula = Callable[[Conv_C3, Tensor], Tensor]
STORED_TAPS = 1e-8  # fixed filters are made in float32: a ninth is not exact there


def norm(y: Tensor, bn: nn.Module, padding: int = 0) -> Tensor:
    """Batch normalization, and the value it gives to zero on a frame around the result."""
    mean, var = (
        (y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) if bn.training else (bn.running_mean, bn.running_var)
    )
    if bn.training and padding:  # the running statistics are updated before the frame is made
        count = y.numel() / y.shape[1]
        seen = bn.seen_mean, bn.seen_var
        frame_mean = 0.9 * seen[0] + 0.1 * mean
        frame_var = 0.9 * seen[1] + 0.1 * var * count / (count - 1)
    else:
        frame_mean, frame_var = mean, var

    def affine(value: Tensor, m: Tensor, v: Tensor) -> Tensor:
        m, v, w, b = (t[:, None, None] for t in (m, v, bn.weight, bn.bias))
        return (value - m) / (v + bn.eps).sqrt() * w + b

    out = affine(y, mean, var)
    if not padding:
        return out
    framed = affine(torch.zeros_like(F.pad(y, [padding] * 4)), frame_mean, frame_var)
    framed[..., padding:-padding, padding:-padding] = out
    return framed


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def conv_bn(x: Tensor, branch: nn.Module) -> Tensor:
    return norm(conv(x, branch.conv), branch.bn)


def identity(m: Conv_C3, x: Tensor) -> Tensor:
    """BN(x), or where the shape changes BN(W_1x1 * x)."""
    return (
        norm(x, m.branch_identity) if isinstance(m.branch_identity, nn.BatchNorm2d) else conv_bn(x, m.branch_identity)
    )


def bare_identity(m: Conv_C3, x: Tensor) -> Tensor:
    """x, or where the shape changes W_1x1 * x."""
    return conv(x, m.branch_identity) if isinstance(m.branch_identity, nn.Conv2d) else x


def repvgg(m: Conv_C3, x: Tensor) -> Tensor:
    return conv_bn(x, m) + conv_bn(x, m.branch_1x1) + identity(m, x)


def mobileone(m: Conv_C3, x: Tensor) -> Tensor:
    return repvgg(m, x) + sum(conv_bn(x, b) for b in (m.branch_conv2, m.branch_conv3, m.branch_conv4))


def acb(m: Conv_C3, x: Tensor) -> Tensor:
    assert (m.branch_1xk.conv.kernel_size, m.branch_kx1.conv.kernel_size) == ((1, 3), (3, 1))
    return conv_bn(x, m) + conv_bn(x, m.branch_1xk) + conv_bn(x, m.branch_kx1)


def replk(m: Conv_C3, x: Tensor) -> Tensor:
    assert m.branch_3x3.conv.kernel_size == (3, 3)
    return conv_bn(x, m) + conv_bn(x, m.branch_3x3)


def qarepvgg(m: Conv_C3, x: Tensor) -> Tensor:
    return norm(norm(conv(x, m.conv), m.dense_bn) + conv(x, m.branch_1x1) + bare_identity(m, x), m.bn)


def qarepvgg_s2(m: Conv_C3, x: Tensor) -> Tensor:
    return conv_bn(x, m) + conv_bn(x, m.branch_1x1) + bare_identity(m, x)


def qarepvgg_s3(m: Conv_C3, x: Tensor) -> Tensor:
    return conv_bn(x, m) + conv(x, m.branch_1x1) + bare_identity(m, x)


def dbb(m: Conv_C3, x: Tensor) -> Tensor:
    stacked, averaged = m.branch_1x1_kxk, m.branch_average
    inner = norm(conv(x, stacked.conv1), stacked.bn1.bn, padding=1)
    mean = F.avg_pool2d(norm(conv(x, averaged.conv), averaged.bn1.bn, padding=1), 3, m.conv.stride)
    return (
        conv_bn(x, m)
        + conv_bn(x, m.branch_1x1)
        + norm(F.conv2d(inner, stacked.conv2.weight, None, m.conv.stride), stacked.bn2)
        + norm(mean, averaged.bn2)
    )


def orepa(m: Conv_C3, x: Tensor) -> Tensor:
    """One kernel, from the paper's six."""
    into, out = m.conv.in_channels, m.conv.out_channels
    prior = torch.empty(out, 3, 3, dtype=x.dtype)
    for i in range(out):
        for h in range(3):
            for w in range(3):
                along, order = (h, i + 1) if i < out / 2 else (w, i + 1 - out / 2)
                prior[i, h, w] = math.cos(math.pi * (along + 0.5) * order / 3)
    depthwise = m.branch_separable.depthwise.weight.view(into, 8, 3, 3)
    pointwise = m.branch_separable.pointwise.weight.view(out, into, 8)
    kernels = {
        m.dense_scale: m.conv.weight,
        m.branch_average.scale: m.branch_average.conv.weight.expand(-1, -1, 3, 3) / 9,
        m.branch_prior.scale: m.branch_prior.conv.weight * prior[:, None],
        m.branch_1x1_kxk.scale: torch.einsum(
            "omhw,mi->oihw", m.branch_1x1_kxk.conv2.weight, m.branch_1x1_kxk.conv1.weight[..., 0, 0]
        ),
        m.branch_1x1.scale: F.pad(m.branch_1x1.conv.weight, [1, 1, 1, 1]),
        m.branch_separable.scale: torch.einsum("iehw,oie->oihw", depthwise, pointwise),
    }
    weight = sum(scale.weight[:, None, None, None] * kernel for scale, kernel in kernels.items())
    return norm(F.conv2d(x, weight, None, m.conv.stride, 1), m.bn)


def csla(m: Conv_C3, x: Tensor) -> Tensor:
    """BN((W + s W1 + diag) * x), arXiv 2205.15242, each branch by itself as in the authors' `LinearAddBlock`."""
    y = F.conv2d(x, m.conv.weight, None, m.conv.stride, 1)
    y = y + m.branch_1x1.scale.weight[:, None, None] * F.conv2d(x, m.branch_1x1.conv.weight, None, m.conv.stride)
    if hasattr(m, "branch_identity"):
        y = y + m.branch_identity.weight.flatten()[:, None, None] * x
    return norm(y, m.bn)


def twin(m: Conv_C3, x: Tensor) -> Tensor:
    return conv_bn(x, m) + conv_bn(x, m.branch_frozen)


def refconv(m: Conv_C3, x: Tensor) -> Tensor:
    """BN((W + G * W) * x), arXiv 2310.10563: the kernel as an image with a channel for each pair of channels."""
    weight = m.conv.weight
    image = weight.reshape(1, -1, *weight.shape[2:])
    refocused = F.conv2d(image, m.branch_refocus.weight, padding=1, groups=image.shape[1] // m.conv.groups)
    return norm(F.conv2d(x, weight + refocused.view_as(weight), None, m.conv.stride, 1, 1, m.conv.groups), m.bn)


FORMULAS: dict[str, tuple[Formula, int]] = {
    "repvgg": (repvgg, 3),
    "mobileone": (mobileone, 3),
    "acb": (acb, 3),
    "replk": (replk, 7),
    "qarepvgg": (qarepvgg, 3),
    "qarepvgg_s2": (qarepvgg_s2, 3),
    "qarepvgg_s3": (qarepvgg_s3, 3),
    "dbb": (dbb, 3),
    "orepa": (orepa, 3),
    "csla": (csla, 3),
    "twin": (twin, 3),
    "refconv": (refconv, 3),
}


WITHOUT_FORMULA = {"plain"}  # adds no branch


def test_every_registered_block_has_its_papers_formula() -> None:
    """A block that is registered without one would be checked against itself alone."""
    assert set(BLOCKS) - WITHOUT_FORMULA == set(FORMULAS)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("c1", "c2", "s"), [(8, 8, 1), (8, 16, 2)])
@pytest.mark.parametrize("block", FORMULAS)
def test_block_computes_its_papers_formula(block: str, c1: int, c2: int, s: int, training: bool) -> None:
    formula, k = FORMULAS[block]
    made = randomize_(Conv_C3(c1, c2, k, s, act=False, block=block)).double().train(training)
    for module in made.modules():
        if isinstance(module, KernelMap):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.seen_mean, module.seen_var = module.running_mean.clone(), module.running_var.clone()
    x = torch.randn(2, c1, 11, 9, dtype=torch.float64)
    got = made(x)
    assert relative_error(formula(made, x), got) < (STORED_TAPS if block in ("dbb", "orepa") else 1e-10)


def test_frequency_prior_takes_the_kernels_own_size() -> None:
    prior = frequency_prior(4, (5, 3))
    assert prior.shape == (4, 5, 3)
    assert float(prior[1, 2, 0]) == pytest.approx(math.cos(math.pi * 2.5 * 2 / 5), abs=1e-6)
    assert float(prior[3, 4, 1]) == pytest.approx(math.cos(math.pi * 1.5 * 2 / 3), abs=1e-6)


def test_options_of_a_block_reach_its_branches() -> None:
    assert (
        sum(name.startswith("branch_conv") for name, _ in Conv_C3(8, 8, block="mobileone(branches=6)").branches()) == 5
    )
    assert Conv_C3(8, 8, 7, block="replk(small=5)").branch_5x5.conv.kernel_size == (5, 5)
    assert Conv_C3(8, 8, block="orepa(expansion=2)").branch_separable.depthwise.out_channels == 16
