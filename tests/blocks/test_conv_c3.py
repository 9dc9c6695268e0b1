"""What `Conv_C3`, `Bottleneck` and `C3` compute before they are folded, and that all of it learns."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.blocks.layers import image, layer
from tests.helpers import assert_same, randomize_
from yolorep import C3, Bottleneck, Conv_C3
from yolorep.blocks import BLOCKS, IDENTITIES, Scale


@pytest.mark.parametrize("shortcut", [True, False])
def test_bottleneck_and_c3_are_yolos(shortcut: bool) -> None:
    """With plain convolutions they are ultralytics' own layers, weight for weight."""
    block = pytest.importorskip("ultralytics.nn.modules.block")
    pairs = [
        (Bottleneck(8, 8, shortcut, block="plain"), block.Bottleneck(8, 8, shortcut, k=((1, 1), (3, 3)))),
        (C3(8, 16, 2, shortcut, block="plain"), block.C3(8, 16, 2, shortcut)),
    ]
    for ours, theirs in pairs:
        randomize_(theirs).eval()
        for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eps = 1e-5
        ours.load_state_dict(theirs.state_dict())
        x = image(8)
        assert_same(theirs(x), ours.eval()(x))


def test_signatures_are_the_published_ones() -> None:
    convolution = "(c1, c2, k=3, s=1, p=None, g=1, d=1, act=True, *, block='repvgg', identity='auto', se=False)"
    bottleneck = "(c1, c2, shortcut=True, g=1, e=0.5, k=(1, 3), **rep)"
    c3 = "(c1, c2, n=1, shortcut=True, g=1, e=0.5, k=(1, 3), **rep)"
    for kind, expected in ((Conv_C3, convolution), (Bottleneck, bottleneck), (C3, c3)):
        parameters = inspect.signature(kind).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert str(inspect.Signature(bare)) == expected


def manual_norm(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm with the statistics of the batch, written out."""
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
    gamma, beta = norm.weight[:, None, None], norm.bias[:, None, None]
    return (y - mean) / torch.sqrt(var + norm.eps) * gamma + beta


def test_conv_c3_in_training_is_the_sum_of_repvgg() -> None:
    """Equation 1 of arXiv 2101.03697, before it is folded."""
    made = randomize_(Conv_C3(8, 8)).double().train()
    x = image(8, torch.float64)
    expected = manual_norm(F.conv2d(x, made.conv.weight, padding=1), made.bn)
    expected = expected + manual_norm(F.conv2d(x, made.branch_1x1.conv.weight), made.branch_1x1.bn)
    expected = expected + manual_norm(x, made.branch_identity)
    assert_same(F.silu(expected), made(x))


def test_conv_c3_strided_in_training_is_the_sum_of_repvgg_with_a_projection() -> None:
    made = randomize_(Conv_C3(8, 16, 3, 2)).double().train()
    x = image(8, torch.float64)
    expected = manual_norm(F.conv2d(x, made.conv.weight, stride=2, padding=1), made.bn)
    for branch in (made.branch_1x1, made.branch_identity):
        expected = expected + manual_norm(F.conv2d(x, branch.conv.weight, stride=2), branch.bn)
    assert_same(F.silu(expected), made(x))


def test_identity_auto_is_a_batch_norm_where_shapes_allow_it() -> None:
    assert isinstance(Conv_C3(8, 8).branch_identity, nn.BatchNorm2d)
    for arguments in ((8, 16), (8, 8, 3, 2), (8, 8, 3, 1, 2)):
        assert isinstance(Conv_C3(*arguments).branch_identity.conv, nn.Conv2d)
    assert not hasattr(Conv_C3(8, 8, identity="none"), "branch_identity")
    assert not hasattr(Conv_C3(8, 8, 1), "branch_1x1")


@pytest.mark.parametrize("block", ["repvgg", "mobileone"])
def test_identity_paper_is_a_batch_norm_where_shapes_allow_it_and_nothing_elsewhere(block: str) -> None:
    assert isinstance(Conv_C3(8, 8, block=block, identity="paper").branch_identity, nn.BatchNorm2d)
    for arguments in ((8, 16), (8, 8, 3, 2)):
        assert not hasattr(Conv_C3(*arguments, block=block, identity="paper"), "branch_identity")


@pytest.mark.parametrize("block", sorted(BLOCKS))
@pytest.mark.parametrize("identity", IDENTITIES)
def test_gradients_reach_every_parameter(block: str, identity: str) -> None:
    for arguments in ((8, 8), (8, 16, 3, 2)):
        made = Conv_C3(*arguments, block=block, identity=identity, se=True).train()
        nn.init.ones_(made.act[0].fc1.bias)  # so that its few units are not dead by chance
        for scale in (m for m in made.modules() if isinstance(m, Scale)):
            nn.init.ones_(scale.weight)  # what is before a gain of 0 learns nothing until the gain has
        y = made(image(8))
        (y * torch.randn_like(y)).sum().backward()
        without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert without == []


def test_se_stays_and_shrinks_by_sixteen() -> None:
    made = layer("se")
    squeeze = made.act[0]
    assert (squeeze.fc1.in_channels, squeeze.fc1.out_channels) == (16, 1)
    assert Conv_C3(8, 64, se=True).act[0].fc1.out_channels == 4
    x = image(8)
    y = made.bn(made.conv(x)) + sum(branch(x) for _, branch in made.branches())
    assert_same(F.silu(y * squeeze._scale(y)), made(x))
