"""Every block through `expand` and `deploy` on a host's model: the function stays, and the stock layers come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import assert_same_outputs, randomize_, relative_error, tensors
from yolorep import BlockError, deploy, expand
from yolorep.blocks import BLOCKS, Block, ChannelMap, Site
from yolorep.blocks.linear import KernelMap
from yolorep.stock_layers import rep_blocks

# In YOLOv5 no kernel is larger than 3x3 but the first, which is even; so there is no place for a smaller one beside it.
BESIDE_SMALL_KERNELS = sorted(set(BLOCKS) - {"plain", "replk"})
EPS_TWICE = 5e-2  # a batch norm before the one that was there adds its eps once more
NOISE = {torch.float64: 1e-9, torch.float32: 1e-5}


def image(dtype: torch.dtype) -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, dtype=dtype)


def settled(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model with the statistics that its batch norms see on `x`, as a trained one has."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum, norm.eps = 1.0, 1e-3
    model.train()(x)
    return model.eval()


@pytest.mark.parametrize("block", BESIDE_SMALL_KERNELS)
def test_expanded_and_deployed_model_compute_what_the_stock_one_does(stock: nn.Module, block: str) -> None:
    stock.double()
    x = image(torch.float64)
    expanded = expand(stock, block)
    assert len(rep_blocks(expanded)) > 20
    assert_same_outputs(stock(x), expanded(x))
    back = deploy(expanded)
    assert_same_outputs(stock(x), back(x))
    assert [type(m) for m in back.modules()] == [type(m) for m in stock.modules()]
    for (name, expected), (same, got) in zip(stock.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == same
        if block != "twin":  # deploy estimates the variance of a sum of independent paths; these two are alike
            assert relative_error(expected, got) < NOISE[torch.float64], name


@pytest.mark.parametrize("block", BESIDE_SMALL_KERNELS)
def test_trained_branches_deploy_to_stock_layers(stock: nn.Module, block: str) -> None:
    """Branches that are awake, and statistics that differ from the dense convolution's."""
    stock.double()
    rep = randomize_(expand(stock, block))
    for module in rep.modules():
        if type(module).__name__ == "Scale":
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, KernelMap)) and not module.weight.any():  # csla, refconv: silent by these
            nn.init.normal_(module.weight, std=0.1)
    x = image(torch.float64)
    expected = rep(x)
    assert max(relative_error(a, b) for a, b in zip(tensors(stock(x)), tensors(expected), strict=True)) > 1e-3
    assert_same_outputs(expected, deploy(rep)(x))


@pytest.mark.parametrize("block", BESIDE_SMALL_KERNELS)
def test_expanded_model_goes_on_training_where_the_stock_one_was(stock: nn.Module, block: str) -> None:
    """In training mode, too, silent branches change next to nothing, and a first step moves them."""
    x = image(torch.float32)
    stock = settled(stock, x)
    expanded = expand(stock, block)
    outputs = [tensors(model.train()(x)) for model in (stock, expanded)]
    assert max(relative_error(a, b) for a, b in zip(*outputs, strict=True)) < EPS_TWICE
    sum(output.square().mean() for output in outputs[1]).backward()
    layers = [m for m in expanded.modules() if hasattr(m, "branches")]
    for layer in layers:
        for name, branch in layer.branches():
            assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in branch.parameters()), name


def test_expansion_that_fails_changes_nothing(stock: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(site: Site) -> dict[str, nn.Module]:
        if any(site.border):
            return {}
        conv = site.conv
        channels, stride = (conv.in_channels, conv.out_channels), conv.stride
        return {"branch_mute": nn.Sequential(ChannelMap(*channels, "select", stride=stride, groups=conv.groups))}

    monkeypatch.setitem(BLOCKS, "mute", Block(mute, "each"))
    before = [type(m) for m in stock.modules()]
    with pytest.raises(BlockError, match=r"^model\.\d.*: a branch .* has no gain to silence it by"):
        expand(stock, "mute", inplace=True)
    assert [type(m) for m in stock.modules()] == before


@pytest.mark.parametrize("block", BESIDE_SMALL_KERNELS)
def test_rebuilt_model_has_the_norms_of_the_expanded_one(stock: nn.Module, block: str) -> None:
    """Whatever the host sets on its batch norms when it builds a model reaches those in the branches."""
    expanded = expand(type(stock)(stock.yaml), block)
    rebuilt = type(stock)(expanded.yaml)
    norms = [
        [(n, m.eps, m.momentum) for n, m in model.named_modules() if hasattr(m, "eps")] for model in (expanded, rebuilt)
    ]
    assert norms[0] == norms[1]


def test_a_wrong_option_is_told_as_such(stock: nn.Module) -> None:
    with pytest.raises(BlockError, match=r"replk\(small=2\): accepted: an odd kernel size"):
        expand(stock, "replk(small=2)")


def test_block_without_a_place_in_the_model_is_refused(stock: nn.Module) -> None:
    with pytest.raises(BlockError, match=r"'replk' .* adds no branch to any of \d+ layers"):
        expand(stock, "replk")
