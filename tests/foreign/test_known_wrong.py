"""Folds that other projects get wrong: theirs differs or fails, ours computes what the block computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.foreign import lookalikes as like
from tests.helpers import assert_same, randomize_, relative_error
from yolorep import deploy

C = 8
WRONG = 1e-3  # a relative error that no rounding explains


def se() -> nn.Module:
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(C, 2)


def own(method: str) -> Callable[[nn.Module], None]:
    return lambda block: getattr(block, method)()


def synchronized() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(like.RepVGGBlock(C, C))


SWITCH, FUSE = own("switch_to_deploy"), own("fuse_repvgg_block")
# name: (block, its project's fold, whether that fails or computes something else)
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None], type[Exception] | None]] = {
    "grouped identity (yolov7)": (lambda: like.RepConv(C, C, g=2), FUSE, None),
    "depthwise identity (yolov7)": (lambda: like.RepConv(C, C, g=C), FUSE, RuntimeError),
    "padding mode": (lambda: like.RepVGGBlock(C, C, padding_mode="reflect"), SWITCH, None),
    "bias of a convolution": (lambda: like.RepVGGBlock(C, C, bias=True), SWITCH, None),
    "synchronized batch norm (RepVGG#93)": (synchronized, SWITCH, AssertionError),
}


@pytest.mark.parametrize("case", CASES)
def test_their_fold_is_wrong_and_ours_is_right(case: str) -> None:
    make, theirs, fails = CASES[case]
    block = randomize_(make()).eval()
    x = torch.randn(2, C, 9, 9)
    expected, copy = block(x), deepcopy(block)
    if fails is not None:
        with pytest.raises(fails):
            theirs(copy)
    else:
        theirs(copy)
        assert relative_error(expected, copy(x)) > WRONG
    assert_same(expected, deploy(block)(x))


def test_their_half_precision_fold_is_float32_and_ours_is_not() -> None:
    block = randomize_(like.RepVGGBlock(C, C)).half().eval()
    copy = deepcopy(block)
    copy.switch_to_deploy()
    assert copy.rbr_reparam.weight.dtype == torch.float32
    assert deploy(block).rbr_reparam.weight.dtype == torch.float16


def test_squeeze_and_excitation_stays() -> None:
    block = randomize_(like.RepVGGBlock(C, C, se=se())).eval()
    x, deployed = torch.randn(2, C, 9, 9), deploy(block)
    assert type(deployed.se).__name__ == "SqueezeExcitation"
    assert_same(block(x), deployed(x))


def test_bias_before_zero_padding_is_not_folded() -> None:
    """A batch norm, then zero padding: no one convolution computes that at the border (DiverseBranchBlock#9)."""
    block = randomize_(like.DiverseBranchBlock(C, C, pads_bias=False)).eval()
    with pytest.warns(UserWarning, match="not exact at the border"):
        deployed = deploy(block)
    assert hasattr(deployed, "dbb_1x1_kxk")


def test_dilation_of_the_folded_convolution_alone() -> None:
    """timm's FastViT dilates no branch, but the convolution that takes their place."""
    fastvit = pytest.importorskip("timm.models.fastvit")
    block, x = randomize_(fastvit.MobileOneBlock(C, C, 3, dilation=2)).eval(), torch.randn(2, C, 9, 9)
    copy = deepcopy(block)
    copy.reparameterize()
    assert relative_error(block(x), copy(x)) > WRONG
    assert_same(block(x), deploy(block)(x))


def test_padding_of_the_1x1_branch_is_that_of_the_kernel() -> None:
    """timm's RepViT, and the official one, pad the 1x1 by one whatever the kernel."""
    repvit = pytest.importorskip("timm.models.repvit")
    block, x = randomize_(repvit.RepVggDw(C, 5)).eval(), torch.randn(2, C, 9, 9)
    with pytest.raises(RuntimeError):
        deepcopy(block).fuse()
    assert_same(block(x), deploy(block)(x))


def test_padding_survives_the_fold() -> None:
    """timm's RepVGG made in inference mode has no padding; a folded one has."""
    byobnet = pytest.importorskip("timm.models.byobnet")
    x = torch.randn(2, C, 9, 9)
    block = randomize_(byobnet.RepVggBlock(C, C)).eval()
    deployed, made = deploy(block), byobnet.RepVggBlock(C, C, inference_mode=True).eval()
    made.load_state_dict(deployed.state_dict())
    assert made(x).shape != block(x).shape
    assert_same(block(x), deployed(x))


def test_folding_twice_is_folding_once() -> None:
    block = randomize_(like.ACBlock(C, C)).eval()
    x = torch.randn(2, C, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(block(x), deploy(deploy(block))(x))
