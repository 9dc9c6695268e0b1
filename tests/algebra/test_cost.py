"""What the algebra does not do: multiply by zeros, copy what it may write to, write to what others use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.algebra.kernels import identity, kernel
from yolorep import fold
from yolorep.algebra import Kernel, add, centre
from yolorep.blocks import Sum
from yolorep.composition import compose
from yolorep.folding import kernel_of


class Calls(TorchDispatchMode):
    """Counts products of matrices (not with a vector) and their multiplications; copies, zeros, weights scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.multiplications = self.copies = self.zeros = self.scaled = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default and result.shape[-1] > 1:
            self.products += 1
            self.multiplications += result.numel() * args[0].shape[-1]
        self.copies += func is torch.ops.aten.clone.default
        self.zeros += func is torch.ops.aten.new_zeros.default
        if func in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor) and result.dim() == 4:
            self.scaled += result.numel()
        return result


# (in, out, size, groups) of both, products, multiplications; 0 where an elementwise product is enough
PRODUCTS = {
    "1x1-3x3": ((4, 6, 1, 1), (6, 5, 3, 1), 1, 4 * 6 * 5 * 9),
    "1x1-1x2": ((4, 6, 1, 1), (6, 5, (1, 2), 1), 1, 4 * 6 * 5 * 2),
    "3x3-1x1": ((4, 6, 3, 1), (6, 5, 1, 1), 1, 4 * 6 * 5 * 9),
    "2x1-1x1": ((4, 6, (2, 1), 1), (6, 5, 1, 1), 1, 4 * 6 * 5 * 2),
    "1x1-1x1": ((4, 6, 1, 1), (6, 5, 1, 1), 1, 4 * 6 * 5),
    "3x3-2x3": ((4, 6, 3, 1), (6, 5, (2, 3), 1), 6, 4 * 6 * 5 * 9 * 6),
    "depthwise-1x1": ((6, 6, 3, 6), (6, 5, 1, 1), 0, 0),
    "1x1-depthwise": ((4, 6, 1, 1), (6, 6, 3, 6), 0, 0),
    "depthwise-depthwise": ((6, 6, 3, 6), (6, 6, 1, 6), 0, 0),
    "multiplied-1x1": ((4, 8, 3, 4), (8, 5, 1, 1), 1, 8 * 5 * 9),
    "finer-first": ((12, 12, 3, 4), (12, 8, 1, 2), 1, 12 * 3 * 4 * 9),
    "finer-second": ((12, 12, 3, 2), (12, 8, 1, 4), 1, 12 * 6 * 2 * 9),
    "coprime": ((12, 12, 3, 2), (12, 9, 1, 3), 1, 12 * 12 * 3 * 9),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_compose_multiplies_no_zeros(case: str) -> None:
    *kernels, products, multiplications = PRODUCTS[case]
    first, second = (kernel(cin, out, size, groups=groups) for cin, out, size, groups in kernels)
    with Calls() as calls:
        compose(first, second)
    assert (calls.products, calls.multiplications) == (products, multiplications)


@pytest.mark.parametrize(("size1", "size2", "zeros"), [(1, 3, 0), (3, 1, 0), (3, 2, 1)])
def test_compose_adds_to_zeros_only_where_taps_meet(size1: int, size2: int, zeros: int) -> None:
    with Calls() as calls:
        compose(kernel(4, 6, size1), kernel(6, 5, size2))
    assert calls.zeros == zeros


def gain(channels: int, **geometry: Any) -> Kernel:
    return kernel(channels, channels, 1, groups=channels, **geometry)


GAINS = {
    "gain": (gain(6), True),
    "one channel": (kernel(1, 1, 1), True),
    "dense": (kernel(6, 6, 1), False),
    "of groups": (kernel(6, 6, 1, groups=3), False),
    "multiplied": (kernel(6, 12, 1, groups=6), False),
    "wide": (kernel(6, 6, (1, 2), groups=6), False),
    "high": (kernel(6, 6, (2, 1), groups=6), False),
    "strided": (gain(6, stride=(1, 2)), False),
    "padded": (gain(6, padding=(0, 1)), False),
    "channel-free": (identity(), False),
}


@pytest.mark.parametrize("case", GAINS)
def test_a_gain_only_scales_and_shifts_each_channel(case: str) -> None:
    k, is_gain = GAINS[case]
    assert k.is_gain is is_gain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gain_writes_only_to_a_copy(dtype: torch.dtype) -> None:
    """A layer's weight in float32 is copied to float64, which may be overwritten; one in float64 is itself used."""
    first, second = kernel(4, 6, 3), gain(6)
    first = replace(first, weight=first.weight.to(dtype))
    before = first.weight.clone()
    with Calls() as calls:
        composed = compose(first, second)
    assert calls.copies == 0
    assert composed.owned
    assert torch.equal(first.weight, before)
    assert torch.allclose(composed.weight, before * second.weight)
    assert composed.weight.dtype is torch.float64


# (size, groups) of each, whether the first is owned; copies of a weight without `overwrite` and with it
SUMS: dict[str, tuple[list[tuple[Any, int]], bool, int, int]] = {
    "owned": ([(3, 1), (1, 1)], True, 1, 0),
    "not owned": ([(3, 1), (1, 1)], False, 1, 1),
    "the smaller owned": ([(1, 1), (3, 1)], True, 1, 1),
    "regrouped": ([(3, 2), (1, 1)], False, 0, 0),
    "alone": ([(3, 1)], True, 1, 0),
    "of one size": ([(3, 1), (3, 1)], True, 0, 0),
    "none of the full size": ([((3, 1), 1), ((1, 3), 1)], True, 0, 0),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("case", SUMS)
def test_a_sum_is_written_only_to_a_kernel_that_it_may_overwrite(case: str, overwrite: bool) -> None:
    shapes, owned, *copies = SUMS[case]
    same = {1: 0, 3: 1, (3, 1): (1, 0), (1, 3): (0, 1)}
    kernels = [kernel(4, 4, size, groups=groups, padding=same[size]) for size, groups in shapes]
    kernels[0] = replace(kernels[0], owned=owned)
    before = [k.weight.clone() for k in kernels]
    expected = add([replace(k, weight=k.weight.clone()) for k in kernels])
    with Calls() as calls:
        total = add(kernels, overwrite=overwrite)
    assert calls.copies == copies[overwrite]
    assert total.owned
    assert torch.equal(total.weight, expected.weight)
    written = total.weight.data_ptr() == kernels[0].weight.data_ptr()
    assert written is (overwrite and case in ("owned", "alone"))
    assert all(torch.equal(k.weight, weight) for k, weight in list(zip(kernels, before, strict=True))[written:])


def conv_bn(cin: int, out: int, size: int, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(cin, out, size, padding=padding, bias=False), nn.BatchNorm2d(out)]


# layers, and the number of weights that the batch norms scale: of the layer before each, the smallest product
SCALED: dict[str, tuple[list[nn.Module], int]] = {
    "kxk-1x1-bn": ([nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)], 4 * 4),
    "1x1-bn-kxk-bn": ([*conv_bn(6, 4, 1), *conv_bn(4, 8, 3)], 6 * 4 + 4 * 8 * 9),
    "1x1-average-bn": ([nn.Conv2d(6, 4, 1), nn.AvgPool2d(3), nn.BatchNorm2d(4)], 4 * 9),
}


@pytest.mark.parametrize("case", SCALED)
def test_a_batch_norm_scales_the_layer_before_it(case: str) -> None:
    layers, scaled = SCALED[case]
    with Calls() as calls:
        fold(nn.Sequential(*layers).eval())
    assert calls.scaled == scaled


def test_a_sum_of_branches_is_written_to_the_largest() -> None:
    branches = Sum({"a": nn.Sequential(*conv_bn(6, 6, 3, 1)), "b": nn.Sequential(*conv_bn(6, 6, 1))}).eval()
    with Calls() as calls:
        kernel_of(branches)
    assert calls.copies == 0


def test_a_centre_is_a_view_of_the_middle_tap() -> None:
    weight = torch.randn(2, 3, 3, 5)
    centre(weight).zero_()
    zeros = torch.zeros(3, 5)
    zeros[1, 2] = 1
    assert torch.equal(weight == 0, zeros.bool().expand(2, 3, 3, 5))
