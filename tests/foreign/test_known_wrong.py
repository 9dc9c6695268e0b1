"""Folds that other projects get wrong: theirs differs or fails, ours computes what the block computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.foreign import classifiers
from tests.foreign import lookalikes as like
from tests.helpers import assert_same, randomize_, relative_error
from yolorep import FoldError, deploy, fold
from yolorep.foreign import foreign_blocks

C = 8
WRONG = 1e-3  # a relative error that no rounding explains


def se() -> nn.Module:
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(C, 2)


def own(method: str) -> Callable[[nn.Module], None]:
    return lambda block: getattr(block, method)()


def synchronized() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(like.RepVGGBlock(C, C))


def without_se(block: nn.Module) -> None:
    """YOLOv5-Lite's `fuse`."""
    block.switch_to_deploy()
    block.se = nn.Identity()


def assumed_eps(block: nn.Module) -> None:
    """ACNet's converter: 1e-5, whatever the block's batch norms have."""
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-5


SWITCH, FUSE = own("switch_to_deploy"), own("fuse_repvgg_block")
# name: (block, its project's fold, whether that fails or computes something else)
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None], type[Exception] | None]] = {
    "grouped identity (yolov7)": (lambda: like.RepConv(C, C, g=2), FUSE, None),
    "depthwise identity (yolov7)": (lambda: like.RepConv(C, C, g=C), FUSE, RuntimeError),
    "padding mode": (lambda: like.RepVGGBlock(C, C, padding_mode="reflect"), SWITCH, None),
    "bias of a convolution": (lambda: like.RepVGGBlock(C, C, bias=True), SWITCH, None),
    "synchronized batch norm (RepVGG#93)": (synchronized, SWITCH, AssertionError),
    "squeeze-and-excitation (mmpretrain)": (lambda: classifiers.RepVGGBlock(C, C, se=se()), SWITCH, None),
    "squeeze-and-excitation (YOLOv5-Lite)": (lambda: like.RepVGGBlock(C, C, se=se()), without_se, None),
    "eps of a batch norm (ACNet)": (lambda: like.ACBlock(C, C), assumed_eps, None),
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
    deployed = deploy(block)
    assert foreign_blocks(deployed) == [], "it is folded, not left as it is"
    assert_same(expected, deployed(x))


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


def test_three_padded_convolutions_are_not_one() -> None:
    """Squeezed into one kernel they differ at the border (OREPA#9)."""
    stack, x = nn.Sequential(*(nn.Conv2d(C, C, 3, padding=1, bias=False) for _ in range(3))), torch.randn(2, C, 9, 9)
    weight = stack[0].weight.transpose(0, 1)
    for conv in stack[1:]:
        weight = nn.functional.conv2d(weight, conv.weight, padding=2)
    squeezed = nn.functional.conv2d(x, weight.transpose(0, 1), padding=3)
    assert relative_error(stack(x), squeezed) > WRONG
    with pytest.raises(FoldError, match="not exact at the border"):
        fold(stack.eval())


def test_padding_that_a_layer_does_not_tell() -> None:
    """RepLKNet's CUDA layer pads, and says that it does not (RepLKNet-pytorch#48): theirs shrinks the image."""
    block = randomize_(classifiers.ReparamLargeKernelConv(C, cuda=True)).eval()
    x, copy = torch.randn(2, C, 9, 9), deepcopy(block)
    copy.merge_kernel()
    assert copy(x).shape[-1] < x.shape[-1]
    with pytest.warns(UserWarning, match="CudaConv is a Conv2d with a forward of its own"):
        assert torch.equal(deploy(block)(x), block(x))


def test_groups_of_a_convolution_stay() -> None:
    """LeViT#22."""
    layer, x = randomize_(classifiers.Conv2d_BN(C, C, g=2)).eval(), torch.randn(2, C, 9, 9)
    with pytest.raises(RuntimeError):
        layer.fuse()
    assert_same(layer(x), fold(layer)(x))


def test_block_that_keeps_a_tensor_of_the_last_step_is_left() -> None:
    """Such a block cannot be copied (YOLOv6#509), nor then be tried."""
    block = randomize_(like.RepVGGBlock(C, C)).eval()
    block.last_kernel = block.rbr_dense.conv.weight * 2
    with pytest.warns(UserWarning, match="left as it is: it cannot be copied"):
        deploy(nn.Sequential(block), inplace=True)
    assert hasattr(block, "rbr_dense")


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


@pytest.mark.parametrize("kind", [like.ACBlock, like.OREPA])
def test_folding_twice_is_folding_once(kind: Callable[..., nn.Module]) -> None:
    block = randomize_(kind(C, C)).eval()
    x = torch.randn(2, C, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(block(x), deploy(deploy(block))(x))
