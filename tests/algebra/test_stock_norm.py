"""`stock_pair`: a convolution without bias and a batch norm that compute what a folded kernel does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.algebra.kernels import apply, kernel
from tests.helpers import assert_same, randomize_
from yolorep import Conv_C3
from yolorep.algebra import Kernel, Moments
from yolorep.stock_norm import stock_pair


def split(total: Kernel, norm: _BatchNorm, **options: Any) -> tuple[nn.Conv2d, _BatchNorm]:
    """`stock_pair`, and a check of what the pair computes."""
    x = torch.randn(2, total.in_channels, 9, 7, dtype=torch.float64)
    expected = apply(total, x)
    conv, made = stock_pair(total, torch.empty_like(total.weight), norm, **options)
    assert_same(expected, made(conv(x)))
    return conv, made


def norm_of(values: dict[str, list[float]], **options: Any) -> _BatchNorm:
    """A batch norm in float64 and evaluation mode with these tensors."""
    norm = nn.BatchNorm2d(len(next(iter(values.values()))), dtype=torch.float64, **options).eval()
    for name, value in values.items():
        getattr(norm, name).data.copy_(torch.tensor(value))
    return norm


@pytest.mark.parametrize("inference", [False, True])
def test_stock_pair_computes_the_same_and_can_be_trained(inference: bool) -> None:
    block = randomize_(Conv_C3(6, 8, act=False)).eval()
    with torch.inference_mode(inference):
        layer = nn.Sequential(*stock_pair(block.linear_kernel(), block.conv.weight, block.bn))
    assert layer[0].bias is None
    assert not any(t.is_inference() for t in (*layer.parameters(), *layer.buffers()))
    x = torch.randn(2, 6, 9, 7)
    assert_same(block(x), layer(x))
    layer.train()(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()


@pytest.mark.parametrize("norm", ["bn", "branch_1x1.bn", "branch_identity.bn"])
@pytest.mark.parametrize("block", ["repvgg", "qarepvgg", "mobileone"])
def test_a_variance_that_overflowed_silences_its_channel_alone(block: str, norm: str) -> None:
    """YOLOv5 stores float16, where a variance above 65504 is infinite, and a batch norm then gives its bias."""
    made = randomize_(Conv_C3(6, 8, act=False, block=block)).eval()
    overflowed = [m for name, m in made.named_modules() if name.endswith(norm)] or [made.bn]
    for layer in overflowed:
        layer.running_var[2] = float("inf")
    layer = nn.Sequential(*stock_pair(made.linear_kernel(), made.conv.weight, made.bn))
    x = torch.randn(2, 6, 9, 7)
    assert bool(torch.isfinite(made(x)).all())
    assert_same(made(x), layer(x))


def test_a_channel_that_the_dense_convolution_dominates_keeps_its_scale() -> None:
    """The others have the recorded variance, and a weight of scale 1; eps is 0, so that a half is a half exactly."""
    dense = norm_of({"weight": [1, -3, 1, 0, 2, -1], "running_var": [1, 4, 1, 4, 0, 9]}, eps=0.0)
    out_var = torch.tensor([2, 9, 2.1, 0, 5, 3], dtype=torch.float64)  # the shares are 1, 9, 1, 0, none, 1
    mean = torch.arange(6, dtype=torch.float64)
    total = kernel(4, 6, 3)
    conv, norm = stock_pair(Kernel(total.weight, total.bias, moments=Moments(mean, out_var)), total.weight, dense)
    scale = torch.tensor([2**0.5, -1.5, 1, 1, 1, -1], dtype=torch.float64)
    var = torch.tensor([1, 4, 2.1, 0, 5, 3], dtype=torch.float64)
    assert torch.allclose(norm.running_var, var)
    assert torch.allclose(norm.weight, scale * var.sqrt())
    assert torch.equal(norm.bias, mean)
    assert torch.allclose(conv.weight, total.weight / scale[:, None, None, None])
    assert torch.allclose(norm.running_mean, (mean - total.bias) / scale)


def test_the_share_of_the_dense_convolution_is_of_what_its_batch_norm_gives() -> None:
    """With eps = 0.5 a variance of 1 becomes 1 / 1.5, less than half of 1.5 and more than half of 1.3."""
    total, dense = kernel(4, 2, 3), norm_of({"weight": [1, 1]}, eps=0.5)
    moments = Moments(torch.zeros(2).double(), torch.tensor([1.5, 1.3], dtype=torch.float64))
    _, norm = split(Kernel(total.weight, total.bias, moments=moments), dense)
    assert norm.running_var.tolist() == [1.5, 1.0]


def test_a_bias_that_overflows_the_convolutions_dtype_is_the_batch_norms() -> None:
    total = kernel(4, 6, 3)
    large = Kernel(total.weight, total.bias + 1e6)
    conv, norm = stock_pair(large, total.weight.half(), nn.BatchNorm2d(6).eval())
    assert conv.weight.dtype is torch.float16
    assert torch.equal(norm.bias, large.bias.float())


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_any_batch_norm_is_split(options: dict[str, bool], recorded: bool) -> None:
    total = kernel(4, 6, 3)
    if recorded:
        moments = Moments(torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64))
        total = Kernel(total.weight, total.bias, moments=moments)
    dense = randomize_(nn.BatchNorm2d(6, momentum=0.3, dtype=torch.float64, **options)).eval()
    _, norm = split(total, dense)
    assert (norm.eps, norm.momentum, norm.affine) == (dense.eps, 0.3, dense.affine)
    if not recorded and dense.affine:
        assert torch.allclose(norm.weight, torch.ones(6, dtype=torch.float64))
        assert torch.allclose(norm.running_var, torch.full((6,), 1 - dense.eps, dtype=torch.float64))
        assert torch.equal(norm.running_mean, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_only_a_kernel_of_its_own_is_overwritten(owned: bool, overwrite: bool, inference: bool) -> None:
    with torch.inference_mode(inference):
        made = kernel(4, 6, 3)
    moments = Moments(torch.randn(6, dtype=torch.float64), torch.full((6,), 3.0, dtype=torch.float64))
    dense = norm_of({"weight": [1.0] * 6})
    before = made.weight.clone()
    stock_pair(Kernel(made.weight, made.bias, moments=moments, owned=owned), before, dense, overwrite=overwrite)
    assert torch.equal(made.weight, before)  # of scale 1
    dominated = Moments(moments.mean, torch.full((6,), 0.5, dtype=torch.float64))
    stock_pair(Kernel(made.weight, made.bias, moments=dominated, owned=owned), before, dense, overwrite=overwrite)
    assert torch.equal(made.weight, before) is not (owned and overwrite and not inference)


def test_a_kernel_is_left_as_it_was_unless_asked() -> None:
    total, dense = kernel(4, 6, 3), norm_of({"weight": [1.0] * 6})
    before = total.weight.clone()
    moments = Moments(torch.zeros(6, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64))
    split(Kernel(total.weight, total.bias, moments=moments, owned=True), dense)
    assert torch.equal(total.weight, before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_the_batch_norm_is_like_the_dense_one(kind: type[_BatchNorm], dtype: torch.dtype, training: bool) -> None:
    dense = kind(6, dtype=dtype).train(training)
    dense.num_batches_tracked.fill_(7)
    dense.bias.requires_grad_(False)
    _, norm = stock_pair(kernel(4, 6, 3), torch.empty(6, 4, 3, 3), dense)
    assert type(norm) is kind
    assert norm.training is training
    assert (norm.weight.requires_grad, norm.bias.requires_grad) == (True, False)
    assert {t.dtype for t in tensors_of(norm)} == {dtype, torch.int64}
    dense.num_batches_tracked.fill_(8)
    assert norm.num_batches_tracked == 7


def tensors_of(norm: _BatchNorm) -> list[Tensor]:
    return [*norm.parameters(), *norm.buffers()]


def test_the_batch_norm_is_on_the_dense_ones_device() -> None:
    total, dense = kernel(4, 6, 3), nn.BatchNorm2d(6, device="meta")
    meta = Kernel(total.weight.to("meta"), total.bias.to("meta"))
    conv, norm = stock_pair(meta, meta.weight, dense)
    assert {t.device.type for t in (conv.weight, *tensors_of(norm))} == {"meta"}
