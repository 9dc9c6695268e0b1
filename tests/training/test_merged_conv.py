"""The step of a merged kernel: equal to autograd's, and it keeps and calls little more than a plain convolution's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import relative_error, tensors
from tests.training.test_call_counts import calls_of_a_step
from yolorep import Conv_C3, expand
from yolorep.bench.training import kept_bytes
from yolorep.blocks.registry import SQUEEZES

SHAPES = {
    "same": (8, 8),
    "wider-stride": (6, 12, 3, 2),
    "narrower": (12, 6),
    "groups": (8, 16, 3, 1, None, 4),
    "same-groups": (8, 8, 3, 1, None, 4),
    "depthwise": (8, 8, 3, 1, None, 8),
    "dilated": (8, 8, 5, 1, None, 1, 2),
    "padded": (8, 8, 3, 1, 3),
    "pointwise": (8, 8, 1),
}


def block(name: str, kind: str = "csla(small=0.7)", **options: str) -> Conv_C3:
    layer = Conv_C3(*SHAPES[name], block=kind, **options).train()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients, that of x first."""
    x = x.detach().requires_grad_()
    y = layer(x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    y.backward(gradient)
    return [y, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("kind", ["csla(small=0.7)", "csla(small=0.7, scales=learned)"])
@pytest.mark.parametrize("name", SHAPES)
def test_step_is_that_of_the_general_algebra(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = block(name, kind).double()
    other, x = copy.deepcopy(layer), torch.randn(2, layer.conv.in_channels, 9, 7, dtype=torch.float64)
    found = step(layer, x)
    monkeypatch.setitem(SQUEEZES, "csla", lambda _: None)
    for expected, got in zip(step(other, x), found, strict=True):
        assert relative_error(expected, got) < 1e-12


@pytest.mark.parametrize("frozen", ["conv.weight", "branch_1x1", "branch_identity", "branch", "conv"])
def test_frozen_kernels_have_no_gradient_and_the_others_theirs(frozen: str) -> None:
    layer = block("same").double()
    other, x = copy.deepcopy(layer), torch.randn(2, 8, 9, 7, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    step(layer, x)
    step(other, x)
    for (name, got), expected in zip(layer.named_parameters(), other.parameters(), strict=True):
        assert (got.grad is None) == name.startswith(frozen)
        assert got.grad is None or relative_error(expected.grad, got.grad) < 1e-12, name


def test_step_under_autocast_is_that_of_one_convolution_of_the_sum() -> None:
    """The kernels are added in float32, and cast once."""
    layer = block("same", "csla(scales=learned)")
    plain = Conv_C3(8, 8, block="plain").train()
    plain.load_state_dict({key: value for key, value in layer.state_dict().items() if key in plain.state_dict()})
    plain.conv.weight.data = SQUEEZES["csla"](layer._parts()).weight().detach()  # type: ignore[union-attr]
    x = torch.randn(2, 8, 9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        (y, grad_x, grad, *_), (expected, expected_x, expected_grad, *_) = step(layer, x), step(plain, x)
    assert (y.dtype, grad.dtype) == (expected.dtype, torch.float32)
    for one, other in ((y, expected), (grad_x, expected_x), (grad, expected_grad)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_no_more_is_kept_than_by_a_plain_block(name: str, autocast: bool) -> None:
    kept = []
    for kind in ("csla", "plain"):
        layer, x = block(name, kind), torch.randn(2, SHAPES[name][0], 9, 7, requires_grad=True)

        def forward(layer: nn.Module = layer, x: Tensor = x) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return layer(x)

        kept.append(kept_bytes(forward))
    scale = 4 * SHAPES[name][1]
    assert kept[0] <= kept[1] + scale


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["csla", "repopt"])
def test_a_whole_model_keeps_what_stock_keeps(stock: nn.Module, kind: str, autocast: bool) -> None:
    x, kept = torch.rand(2, 3, 96, 96), []
    for model in (expand(stock, kind).train(), stock.train()):

        def forward(model: nn.Module = model) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs = tensors(model(x))
                return torch.stack([output.float().sum() for output in outputs]).sum()

        kept.append(kept_bytes(forward))
    assert kept[0] <= 1.02 * kept[1]


def test_calls_of_a_step_are_few() -> None:
    """A plain block's, two sums of kernels, and a gradient for the 1x1 kernel, the diagonal and their own leaves."""
    found = calls_of_a_step("csla")
    assert found.total() <= calls_of_a_step("plain").total() + 11, found


def test_padding_of_other_kinds_than_zeros_is_kept() -> None:
    layer = block("same", identity="none").double()
    layer.conv.padding_mode = "reflect"
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    expected = nn.functional.conv2d(
        nn.functional.pad(x, (1, 1, 1, 1), "reflect"),
        SQUEEZES["csla"](layer._parts()).weight(),  # type: ignore[union-attr]
    )
    seen = []
    layer.bn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer(x)
    assert relative_error(expected, seen[0]) < 1e-14


def test_the_compiler_traces_one_graph() -> None:
    layer = block("same")
    plain, x = copy.deepcopy(layer), torch.randn(2, 8, 8, 8)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for expected, got in zip(step(plain, x), step(compiled, x), strict=True):
        assert relative_error(expected, got) < 1e-5
