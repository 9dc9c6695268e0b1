"""RefConv: a frozen kernel and a trained convolution over it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomize_, relative_error
from yolorep import Conv_C3, deploy, expand, fold
from yolorep.blocks.laws import law_of
from yolorep.blocks.refconv import Refocus, refocused
from yolorep.blocks.twin import FrozenConv2d

SHAPES: dict[str, dict[str, Any]] = {
    "same": {"c2": 8},
    "wider-strided": {"c2": 12, "s": 2},
    "narrower": {"c2": 4},
    "grouped": {"c2": 12, "g": 4},
    "depthwise": {"c2": 8, "g": 8},
    "multiplied": {"c2": 16, "g": 8},
    "dilated": {"c2": 8, "d": 2},
    "flat": {"c2": 8, "k": (1, 3)},
    "large": {"c2": 8, "k": 7, "g": 8},
    "identity": {"c2": 12, "s": 2, "identity": "average"},
}


def awake(dtype: torch.dtype = torch.float64, **options: Any) -> Conv_C3:
    block = randomize_(Conv_C3(8, block="refconv", act=False, **options))
    nn.init.normal_(block.branch_refocus.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    return block.to(dtype).eval()


def written_out(block: Conv_C3) -> Tensor:
    """The kernel as the paper's authors compute it: by a grouped convolution over the kernel as an image."""
    weight, taps = block.conv.weight, block.branch_refocus.weight  # type: ignore[union-attr]
    image = weight.reshape(1, -1, *weight.shape[2:])
    padding = [length // 2 for length in taps.shape[2:]]  # type: ignore[union-attr]
    pairs = weight.shape[0] * weight.shape[1]
    return weight + F.conv2d(image, taps, None, 1, padding, 1, pairs // block.conv.groups).view_as(weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_geometry_computes_the_formula_and_folds(shape: dict[str, Any]) -> None:
    block = awake(**shape)
    x = torch.randn(2, 8, 11, 9, dtype=torch.float64)
    expected = block(x)
    if "identity" not in shape:
        conv = block.conv
        y = F.conv2d(x, written_out(block), None, conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        assert relative_error(block.bn(y), expected) < 1e-12
        assert relative_error(block.bn(block.conv(x)), expected) > 1e-3  # the refocusing counts
    assert relative_error(expected, fold(block)(x)) < 1e-10
    assert sum(kernel.bias.abs().sum() > 0 for _, kernel in block.terms()) == len(block.terms())
    block._switch_to_deploy()
    assert relative_error(expected, block(x)) < 1e-10
    assert isinstance(block.conv.weight, nn.Parameter)
    assert block.conv.weight.requires_grad


def test_the_general_algebra_and_the_closed_form_give_one_kernel_and_gradient() -> None:
    block = awake(c2=8).train()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    gradients = []
    law = law_of("online")
    for squeeze in (None, refocused):
        block.zero_grad()
        law.forward(block._parts(), x, None, squeeze).square().sum().backward()
        gradients.append(block.branch_refocus.weight.grad.clone())  # type: ignore[union-attr, operator]
    assert relative_error(*gradients) < 1e-10


def test_only_the_refocusing_and_the_batch_norm_are_trained() -> None:
    block = Conv_C3(8, 8, block="refconv").train()
    kernel = block.conv.weight.clone()
    assert {name for name, _ in block.named_parameters()} == {"branch_refocus.weight", "bn.weight", "bn.bias"}
    assert "conv.weight" in block.state_dict()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1, weight_decay=0.1)
    block(torch.randn(2, 8, 5, 5)).square().mean().backward()
    optimizer.step()
    assert torch.equal(kernel, block.conv.weight)
    assert block.branch_refocus.weight.abs().sum() > 0  # type: ignore[union-attr, operator]


def test_the_start_computes_the_stock_layer_in_both_modes() -> None:
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    stock = randomize_(nn.Sequential(conv.Conv(8, 16, 3, 2), conv.Conv(16, 16, 1), conv.Conv(16, 16, 3, g=16))).double()
    rep = expand(stock, "refconv", select=["0", "2"])
    x = torch.randn(4, 8, 9, 9, dtype=torch.float64)
    for training in (False, True):
        assert relative_error(copy.deepcopy(stock).train(training)(x), copy.deepcopy(rep).train(training)(x)) < 1e-12
    assert list(stock.state_dict()) == [key for key in rep.state_dict() if "refocus" not in key]
    back = deploy(rep.eval())
    assert [type(module) for module in back.modules()] == [type(module) for module in stock.modules()]
    for (name, expected), (same, got) in zip(stock.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == same
        assert relative_error(expected, got) < 1e-12
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert not any(isinstance(module, FrozenConv2d) for module in back.modules())


def test_a_1x1_layer_stays_as_it_is_and_is_trained() -> None:
    block = Conv_C3(8, 16, 1, block="refconv")
    assert not list(block.branches())
    assert isinstance(block.conv.weight, nn.Parameter)
    assert block.train()(torch.rand(2, 8, 4, 4)).shape == (2, 16, 4, 4)
    block.eval()._switch_to_deploy()


def test_copies_pickles_and_state_dicts_keep_the_function() -> None:
    block, x = awake(torch.float32, c2=12, s=2), torch.randn(2, 8, 9, 9)
    expected = block(x)
    other = Conv_C3(8, 12, s=2, block="refconv", act=False).eval()
    other.load_state_dict(block.state_dict())
    other.bn.eps = block.bn.eps
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), other):
        assert torch.equal(expected, copied(x))
        assert {name for name, _ in copied.named_buffers()} >= {"conv.weight"}
    assert relative_error(expected, copy.deepcopy(block).half().float()(x)) < 1e-2


def test_refocusing_in_half_precision_is_rounded_once() -> None:
    block = awake(torch.float32, c2=8)
    single = copy.deepcopy(block).half().float()
    x = torch.randn(1, 8, 6, 6).half()
    assert relative_error(single(x.float()), copy.deepcopy(block).half()(x).float()) < 5e-3


def test_a_map_of_another_shape_is_refused_with_its_name() -> None:
    from yolorep.errors import FoldError

    block = awake(c2=8)
    block.branch_refocus.forward = lambda weight: weight[:, :1]  # type: ignore[union-attr, method-assign, assignment]
    with pytest.raises(FoldError, match=r"^branch_refocus: Refocus gives a kernel of \(8, 1, 3, 3\) for a dense one"):
        block.linear_kernel()


def test_refocus_reads_no_other_pair_of_channels() -> None:
    refocus = Refocus(nn.Conv2d(2, 2, 3, bias=False))
    nn.init.ones_(refocus.weight)
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[1, 0] = 1
    assert refocus(kernel)[1, 0].sum() > 0
    assert refocus(kernel).sum() == refocus(kernel)[1, 0].sum()
