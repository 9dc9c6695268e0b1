"""OREPA's kernel in closed form: equal to the general algebra, differentiable, and traced without a graph break."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.helpers import relative_error
from yolorep import Conv_C3, FoldError
from yolorep.blocks import laws
from yolorep.blocks.orepa import squeezed
from yolorep.precision import differentiable

SHAPES = {
    "same": (8, 8),
    "wider-stride": (6, 12, 3, 2),
    "narrower": (12, 6),
    "groups": (8, 16, 3, 1, None, 4),
    "many-groups": (16, 16, 3, 1, None, 8),
    "depthwise": (8, 8, 3, 1, None, 8),
    "dilated": (8, 8, 5, 1, None, 1, 2),
    "padded": (8, 8, 3, 1, 3),
    "pointwise-wider": (6, 12, 1),
    "pointwise-narrower-groups": (12, 8, 1, 1, None, 2),
}


def block(name: str) -> Conv_C3:
    layer = Conv_C3(*SHAPES[name], block="orepa").double().train()
    with torch.no_grad():  # every branch carries, the prior too, whose scale starts at zero
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("name", SHAPES)
def test_closed_form_is_the_algebra(name: str) -> None:
    layer = block(name)
    parts = layer._parts()
    weight = squeezed(parts)
    assert weight is not None
    with differentiable():
        expected = laws._before_norm(parts).weight
    if expected.shape != weight.shape:  # the algebra keeps only the taps that it needs
        pytest.fail(f"{tuple(weight.shape)} instead of {tuple(expected.shape)}")
    assert relative_error(expected, weight) < 1e-14


@pytest.mark.parametrize("name", ["same", "groups", "pointwise-wider"])
def test_gradients_of_both_forms_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = block(name)
    x = torch.randn(2, layer.conv.in_channels, 9, 7, dtype=torch.float64)
    other = copy.deepcopy(layer)
    layer(x).square().sum().backward()
    monkeypatch.setitem(__import__("yolorep.blocks.registry", fromlist=["SQUEEZES"]).SQUEEZES, "orepa", lambda _: None)
    other(x).square().sum().backward()
    for (key, a), b in zip(layer.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None, key
        assert relative_error(b.grad, a.grad) < 1e-10, key


def test_an_identity_branch_is_left_to_the_algebra() -> None:
    layer = Conv_C3(8, 8, block="orepa", identity="conv").train()
    assert squeezed(layer._parts()) is None
    layer(torch.randn(1, 8, 5, 5)).sum().backward()
    assert layer.branch_identity.weight.grad is not None


def test_hooked_layers_are_refused_as_by_the_algebra() -> None:
    layer = Conv_C3(8, 8, block="orepa").train()
    layer.branch_1x1.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(FoldError, match="forward hooks"):
        layer(torch.randn(1, 8, 5, 5))


@pytest.mark.parametrize("law", ["repvgg", "qarepvgg", "orepa"])
def test_blocks_are_one_graph_to_the_compiler(law: str) -> None:
    layer = Conv_C3(8, 8, block=law).train()
    plain = copy.deepcopy(layer)
    x = torch.randn(2, 8, 8, 8)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert relative_error(plain(x), compiled(x)) < 1e-6


def test_an_unknown_law_is_a_block_error() -> None:
    from yolorep import BlockError
    from yolorep.blocks import register_block

    with pytest.raises(BlockError, match="law 'twice' is unknown; accepted: each, sum, online"):
        register_block("mine", law="twice")
