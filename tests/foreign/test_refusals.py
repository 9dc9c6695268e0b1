"""Blocks that are left as they are, and what is said about it; blocks that only their own method can fold."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.foreign import lookalikes as like
from tests.helpers import assert_same, assert_untouched, randomize_, snapshot, tensors
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


class FewerOutputs(Own):
    """A block that says more while it has its branches: a mask, of which there is no difference, and nothing."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if hasattr(self, "c") else (super().forward(x), x > 0, x[:0])


class ManyOutputs(Own):
    """A block that says all of that in either form."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x > 0, x[:0]


def own_hooked() -> nn.Module:
    block = Own()
    block.b.register_forward_hook(lambda module, inputs, output: 3 * output)
    return block


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
    "hooked inside its own fold": (own_hooked, "b: Conv2d has forward hooks"),
    "says less by itself": (FewerOutputs, "its own switch_to_deploy.., it computes something else"),
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


@pytest.mark.parametrize("kind", [Own, ManyOutputs])
def test_unknown_block_folds_itself(kind: type[Own]) -> None:
    model, x = nn.Sequential(kind()).eval(), torch.randn(2, C, 9, 9)
    Own.calls.clear()
    deployed = deploy(model)
    assert len(Own.calls) == 2, "once on a copy, once in earnest"
    assert not hasattr(deployed[0], "a")
    assert_same(tensors(model(x))[0], tensors(deployed(x))[0])
    assert foreign_blocks(deployed) == []


def test_block_without_values_is_folded_unproven() -> None:
    with torch.device("meta"):
        block = like.RepVGGBlock(C, C).eval()
    assert deploy(block).rbr_reparam.weight.is_meta
