"""Rounding for training: every learned convolution computes with 8 bits, learns, and is as before afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from yolorep.quantization.rounding import INPUT, round_, unround_


class Network(nn.Module):
    """Two learned convolutions, a transposed one, and the decoder of a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.grouped, self.decoder = nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.grouped(self.up(self.stem(x).relu())).softmax(1))


@pytest.fixture
def network() -> Network:
    return Network().eval()


def test_weights_and_inputs_are_multiples_of_a_step(network: Network) -> None:
    x, plain = torch.rand(2, 3, 16, 16), network.grouped.weight.clone()
    names = round_(network)
    assert names == ["stem", "up", "grouped"], "the decoder stays in float"
    network(x)
    for name, axis in (("stem", 0), ("up", 1), ("grouped", 0)):
        layer = network.get_submodule(name)
        for channel in layer.weight.detach().unbind(axis):
            assert len(channel.unique()) <= 256
            steps = channel / (layer.parametrizations.weight.original.abs().amax() / 127.5)
            assert steps.abs().max() <= 129
    weight = network.grouped.weight.detach()
    step = plain.abs().flatten(1).amax(1)[:, None, None, None] / 127.5
    assert not torch.equal(weight, plain)
    assert ((weight - plain).abs() <= step / 2 + 1e-7).all()
    seen: list[torch.Tensor] = []
    original = network.grouped._conv_forward
    network.grouped._conv_forward = lambda x, *rest: seen.append(x) or original(x, *rest)  # type: ignore[method-assign]
    network(x)
    assert len(seen[0].unique()) <= 256


def test_gradients_reach_every_weight_through_the_rounding(network: Network) -> None:
    round_(network)
    network.train()(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_copy_learns_apart_from_its_source(network: Network) -> None:
    round_(network)
    x = torch.rand(2, 3, 16, 16)
    network(x)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.stem.parametrizations.weight.original.mul_(3)
    assert torch.equal(other.up(network.stem(x)), network.up(network.stem(x)))
    assert not torch.equal(other(x), network(x))


def test_unrounded_network_computes_and_is_as_before(network: Network) -> None:
    x, before = torch.rand(2, 3, 16, 16), copy.deepcopy(network)
    expected = network(x)
    round_(network)
    assert not torch.equal(network(x), expected)
    unround_(network)
    assert torch.equal(network(x), expected)
    assert network.state_dict().keys() == before.state_dict().keys()
    assert [type(layer) for layer in network.modules()] == [type(layer) for layer in before.modules()]
    assert not any(hasattr(layer, INPUT) or layer._forward_pre_hooks for layer in network.modules())
