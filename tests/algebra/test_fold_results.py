"""What a folded convolution is beside its function: device, dtype, geometry without values, no side effects."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.algebra.test_folding import FOLDED, conv, seq
from yolorep import FoldError, fold
from yolorep.algebra import Kernel
from yolorep.blocks import Sum
from yolorep.folding import kernel_of


@pytest.mark.parametrize("case", FOLDED)
def test_a_module_without_values_folds_to_the_same_geometry(case: str) -> None:
    """Layers without tensors, which are on no device, follow the others."""
    module = FOLDED[case]().eval()
    folded = fold(module)
    shapes = fold(module.to("meta"))
    assert {p.device.type for p in shapes.parameters()} == {"meta"}
    assert repr(shapes) == repr(folded)
    assert shapes.weight.shape == folded.weight.shape


def test_fold_takes_no_random_numbers() -> None:
    module = FOLDED["sum-of-nests"]().eval()
    before = torch.get_rng_state()
    fold(module)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("reverse", [False, True])
def test_the_largest_convolution_decides(reverse: bool) -> None:
    small, large = conv(6, 6, 1).half().requires_grad_(False), conv(6, 6, 3)
    layers = [nn.BatchNorm2d(6).double(), small, large.to(memory_format=torch.channels_last)]
    folded = fold(seq(*(layers[::-1] if reverse else layers)).eval())
    assert folded.weight.dtype is folded.bias.dtype is torch.float32
    assert folded.weight.requires_grad
    assert folded.bias.requires_grad
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_alone_decides(affine: bool) -> None:
    assert fold(nn.BatchNorm2d(6, affine=affine).half().eval()).weight.dtype is torch.float16


class Reversed(nn.Module):
    """A layer of the user's own without tensors: the channels in reverse."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


@pytest.fixture
def own_layer() -> nn.Module:
    kernel_of.register(Reversed)(lambda module: Kernel(torch.eye(6).flip(0)[:, :, None, None].double(), torch.zeros(6)))
    return Reversed()


def test_a_layer_of_the_users_own_without_tensors_folds_to_float32(own_layer: nn.Module) -> None:
    x = torch.randn(1, 6, 4, 4)
    folded = fold(own_layer)
    assert folded.weight.dtype is folded.bias.dtype is torch.float32
    assert torch.equal(folded(x), own_layer(x))


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_a_batch_norm_without_one_of_its_statistics_is_refused(missing: str) -> None:
    norm = nn.BatchNorm2d(6).eval()
    setattr(norm, missing, None)
    with pytest.raises(FoldError, match="keeps no running statistics"):
        fold(norm)


def test_a_kernel_reads_the_layers_own_weight_and_is_in_float64_else() -> None:
    layer = conv(6, 8)
    assert kernel_of(layer).weight is layer.weight
    without_bias = kernel_of(conv(6, 8, bias=False))
    free = [kernel_of(m) for m in (nn.Identity(), nn.AvgPool2d(3), nn.Dropout().eval())]
    assert {t.dtype for k in free for t in (k.weight, k.bias)} == {torch.float64}
    assert without_bias.bias.dtype is kernel_of(layer).bias.dtype is torch.float64


def test_the_recorded_moments_are_those_of_the_output() -> None:
    norm = nn.BatchNorm2d(6, eps=0.1, dtype=torch.float64)
    norm.momentum = None
    nn.init.uniform_(norm.weight, -1, 1)
    nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(64, 6, 9, 9, dtype=torch.float64) * 2 + 1
    norm(x)
    norm.eval()
    moments, y = kernel_of(norm).moments, norm(x)
    assert torch.allclose(moments.mean, y.mean((0, 2, 3)))
    assert torch.allclose(moments.var, y.var((0, 2, 3)))


def test_a_sum_of_layers_on_two_devices_is_refused() -> None:
    with pytest.raises(FoldError, match="layers on different devices: cpu and meta"):
        fold(Sum({"identity": nn.Identity(), "a": conv(6, 6, 1), "b": conv(6, 6, 1, device="meta")}))
