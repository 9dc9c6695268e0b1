"""Blocks that are left as they are, and what is said about it; blocks that only their own method can fold."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.foreign import lookalikes as like
from tests.helpers import assert_same, assert_untouched, randomize_, snapshot
from yolorep import FoldError, deploy
from yolorep.foreign import foreign_blocks

C = 8


class RepVGGBlock(like.RepVGGBlock):
    """The name and attributes of a known block, and another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if hasattr(self, "rbr_reparam") else self.rbr_dense(x) - self.rbr_1x1(x)


class Own(nn.Module):
    """A block that no declaration knows, with a method that folds it, rightly or not."""

    calls: ClassVar[list[int]] = []

    def __init__(self, right: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.right = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1), right

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) if hasattr(self, "c") else self.a(x) + self.b(x)

    def train(self, mode: bool = True) -> None:
        """As some projects have it, it returns nothing."""
        super().train(mode)

    def switch_to_deploy(self) -> None:
        self.calls.append(1)
        if hasattr(self, "c"):
            return
        self.c = nn.Conv2d(C, C, 1)
        self.c.weight.data = self.a.weight.data + self.b.weight.data
        self.c.bias.data = self.a.bias.data + (self.b.bias.data if self.right else 0)
        del self.a, self.b


def hooked() -> nn.Module:
    block = like.RepVGGBlock(C, C)
    block.rbr_dense.conv.register_forward_hook(lambda *_: None)
    return block


def nonlinear() -> nn.Module:
    block = like.RepVGGBlock(C, C)
    block.rbr_dense.append(nn.ReLU())
    return block


def not_finite() -> nn.Module:
    block = like.RepVGGBlock(C, C)
    block.rbr_1x1.conv.weight.data[0] = torch.inf
    return block


LEFT = {
    "something else": (lambda: RepVGGBlock(C, C), "1: RepVGGBlock is left as it is: folded, it would compute"),
    "hooked": (hooked, "rbr_dense.conv: Conv2d has forward hooks"),
    "not linear": (nonlinear, "ReLU is not a linear layer"),
    "not finite": (not_finite, "not finite"),
    "wrong by itself": (lambda: Own(right=False), "its own switch_to_deploy.., it computes something else"),
}


@pytest.mark.parametrize("case", LEFT)
def test_block_is_left_and_a_warning_says_why(case: str) -> None:
    make, reason = LEFT[case]
    model = nn.Sequential(nn.Identity(), make(), randomize_(like.RepVGGBlock(C, C))).eval()
    before = snapshot(model[1])
    with pytest.warns(UserWarning, match=reason):
        deploy(model, inplace=True)
    assert_untouched(before, model[1])
    assert foreign_blocks(model) == [("1", model[1])], "the others are folded"


def test_training_mode_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(like.RepVGGBlock(C, C).eval(), like.RepVGGBlock(C, C))
    before = snapshot(model)
    with pytest.raises(FoldError, match=r"^1: RepVGGBlock is in training mode"):
        deploy(model, inplace=True)
    assert_untouched(before, model)


def test_unknown_block_folds_itself() -> None:
    model, x = nn.Sequential(Own()).eval(), torch.randn(2, C, 9, 9)
    Own.calls.clear()
    deployed = deploy(model)
    assert len(Own.calls) == 2, "once on a copy, once in earnest"
    assert not hasattr(deployed[0], "a")
    assert_same(model(x), deployed(x))
    assert foreign_blocks(deployed) == []


def test_block_without_values_is_folded_unproven() -> None:
    with torch.device("meta"):
        block = like.RepVGGBlock(C, C).eval()
    assert deploy(block).rbr_reparam.weight.is_meta
