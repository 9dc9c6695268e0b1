"""Which layers are a host's stock convolutions, told by class and by what they compute, whatever their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolorep import deploy, expand
from yolorep.stock_layers import edited, edited_layers, is_stock_conv, nothing_to_expand, rep_blocks, stock_convs

conv = pytest.importorskip("ultralytics.nn.modules.conv")


def layer_of_a_tree(forward: Callable[[Any, Tensor], Tensor] = conv.Conv.forward, *arguments: Any) -> nn.Module:
    """A layer of a new class `models.common.Conv`, which nothing has looked at yet."""
    kind = type("Conv", (conv.Conv,), {"forward": forward, "__module__": "models.common"})
    return kind(*(arguments or (8, 8, 3)))


def blurred() -> nn.Module:
    layer = conv.Conv(8, 8, 3)
    layer.blur = nn.AvgPool2d(3, 1, 1)
    return layer


def fused() -> nn.Module:
    layer = conv.Conv(8, 8, 3)
    del layer.bn
    layer.forward = layer.forward_fuse
    return layer


def test_stock_convolutions_are_found_by_name_without_those_of_rep_blocks() -> None:
    model = nn.Sequential(
        conv.Conv(8, 8, 3),
        nn.Sequential(conv.DWConv(8, 8, 3), nn.Conv2d(8, 8, 1)),
        conv.RepConv(8, 8),
        fused(),
        blurred(),
        expand(nn.Sequential(conv.Conv(8, 8, 3))),
    )
    found = dict(stock_convs(model))
    assert list(found) == ["0", "1.0"]
    assert all(layer is model.get_submodule(name) for name, layer in found.items())


class Mine(nn.Module):
    """A layer of the user's own, which a host does not build."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


@pytest.mark.parametrize("make", [Mine, nn.Sequential, lambda: conv.RepConv(8, 8), fused, blurred])
def test_other_layers_are_no_stock_convolutions(make: Callable[[], nn.Module]) -> None:
    assert is_stock_conv(make()) is False


@pytest.mark.parametrize(
    "arguments",
    [
        (8, 8, 7, 1, 0, 1, 3),  # c1, c2, k, s, p, g, d: no padding, so that a small image would not do
        (8, 8, 3, 1, 0, 1, 5),
        (8, 8, (1, 9), 1, 0),
        (8, 8, (9, 1), 1, 0),
        (4, 8, 5, 2, None, 2, 2, nn.Hardtanh()),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_stock_forward_is_recognized_at_any_size_and_dtype(arguments: tuple, dtype: torch.dtype) -> None:
    assert edited(layer_of_a_tree(conv.Conv.forward, *arguments).to(dtype)) is None


def test_an_edited_forward_is_looked_at_once_a_class() -> None:
    calls = []

    def forward(self: Any, x: Tensor) -> Tensor:
        calls.append(x)
        return conv.Conv.forward(self, x) * 2

    layer = layer_of_a_tree(forward)
    for one in (layer, layer, type(layer)(8, 16, 3)):
        assert edited(one) == "the forward of models.common.Conv computes something else"
    assert len(calls) == 1


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, AttributeError, KeyError])
def test_a_forward_that_fails_is_edited(error: type[Exception]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        raise error

    assert edited(layer_of_a_tree(forward)) == "the forward of models.common.Conv computes something else"


def test_a_layer_without_values_says_nothing_of_its_class() -> None:
    layer = layer_of_a_tree(lambda self, x: conv.Conv.forward(self, x) * 2)
    assert edited(layer_on_meta(layer)) is None
    assert edited(layer) is not None
    assert edited(layer_on_meta(layer)) is not None


def layer_on_meta(layer: nn.Module) -> nn.Module:
    return type(layer)(8, 8, 3).to("meta")


def test_looking_at_a_layer_changes_nothing() -> None:
    """The layer and the random state stay as they were, and the default dtype does not matter."""
    layer = layer_of_a_tree()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    random = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert edited(layer) is None
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(random, torch.get_rng_state())
    assert layer.training
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())


def test_edits_are_told_one_line_a_kind() -> None:
    grouped = conv.Conv(8, 8, 3)
    grouped.bn = nn.GroupNorm(4, 8)
    rep = expand(nn.Sequential(conv.Conv(8, 8, 3)))
    model = nn.Sequential(conv.Conv(8, 8, 3), blurred(), grouped, fused(), rep, blurred(), nn.BatchNorm2d(8))
    assert edited_layers(model) == ["1 and 1 more layer: it has a layer 'blur'", "2: its bn is GroupNorm"]


def test_the_first_layer_too_many_is_named() -> None:
    layer = blurred()
    layer.after = nn.Identity()
    assert edited(layer) == "it has a layer 'after'"


def test_rep_blocks_are_those_with_branches() -> None:
    model = nn.Sequential(*(expand(nn.Sequential(conv.Conv(8, 8, 3)))[0] for _ in range(3)), conv.Conv(8, 8, 3))
    model.eval()[1]._switch_to_deploy()
    assert rep_blocks(model) == ["0", "2"]
    assert rep_blocks(deploy(model)) == []


NOTHING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "expanded": (
        lambda: expand(nn.Sequential(conv.Conv(8, 8, 3))),
        "Sequential is already expanded; deploy() it first",
    ),
    "edited": (
        lambda: nn.Sequential(blurred(), fused()),
        "Sequential: its convolutions are edited, so that none can be expanded (0: it has a layer 'blur')",
    ),
    "fused": (
        lambda: nn.Sequential(fused()),
        "Sequential is fused (its layers have no batch norm); expand it before fuse()",
    ),
    "foreign": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3)),
        "Sequential has no convolution layer of ultralytics or YOLOv5; accepted: a model of either",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_model_without_stock_convolutions_is_told_why(case: str) -> None:
    make, says = NOTHING[case]
    assert str(nothing_to_expand(make())) == says
