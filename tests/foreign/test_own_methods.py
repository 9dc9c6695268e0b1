"""Blocks that only a method of their own folds: folded where that is proven, otherwise named with the reason."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.foreign import method_blocks as blocks
from tests.helpers import assert_same, randomize_
from yolorep import deploy
from yolorep.deployment import deployed
from yolorep.foreign import foreign_blocks

FOLD = (
    blocks.QARepVGGBlock,
    blocks.DilatedReparamBlock,
    blocks.Residual,
    blocks.VanillaBlock,
    blocks.Container,
    blocks.AlphaRepVGG,
)
LEFT = {
    blocks.Untold: "it has a method get_equivalent_kernel_bias(), which yolorep does not know",
    blocks.FusedInPlace: "its own fuse() folds it in place, which is left to its project's code",
}


def _model(kind: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    return randomize_(nn.Sequential(nn.Conv2d(3, blocks.C, 3), kind())).eval(), torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("kind", FOLD, ids=lambda kind: kind.__name__)
def test_block_is_folded_by_its_own_method(kind: type[nn.Module]) -> None:
    model, x = _model(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = deploy(model)
    assert_same(model(x), after(x))
    assert foreign_blocks(after) == []
    count = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (model, after)]
    assert count[1] < count[0]


def test_method_that_keeps_the_branches_is_told() -> None:
    model, x = _model(blocks.RepVggBlock)
    result = deployed(model)
    assert_same(model(x), result.model(x))
    assert result.folding.folded == ("1",)
    assert result.folding.notes == (
        "1: its own convert_to_deploy() keeps the branches beside the folded layer, as its project does",
    )
    assert deployed(result.model).folding.folded == (), "a second deployment finds nothing"


def test_parent_that_folds_more_than_its_children_is_folded_as_a_whole() -> None:
    assert deployed(_model(blocks.VanillaBlock)[0]).folding.folded == ("1",)
    assert deployed(_model(blocks.Container)[0]).folding.folded == ("1.first", "1.second")


@pytest.mark.parametrize("kind", LEFT, ids=lambda kind: kind.__name__)
def test_block_that_nothing_folds_is_named(kind: type[nn.Module]) -> None:
    model, x = _model(kind)
    with pytest.warns(UserWarning, match=r"left as it is") as warned:
        after = deploy(model)
    assert LEFT[kind] in str(warned[0].message)
    assert len(warned) == 1
    assert_same(model(x), after(x))


def test_conv_norm_layers_with_a_fuse_of_their_own_are_no_rep_blocks() -> None:
    """LeViT's and RepViT's `Conv2d_BN` returns its convolution: the project's deployment, not a fold of branches."""

    class ConvBN(blocks.ConvNorm):
        def fuse(self) -> nn.Conv2d:
            return blocks.merged(self.folded(self.conv.kernel_size[0]))

    model = nn.Sequential(ConvBN(3, 8, 3)).eval()
    assert deployed(model).folding.folded == ()
    assert isinstance(deploy(model)[0], ConvBN)
