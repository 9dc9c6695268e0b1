"""The fold grid: every block within tolerance, and a grid that notices each fault that folds are known for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.blocks import grid
from tests.helpers import TOLERANCE
from yolorep import algebra
from yolorep.algebra import Kernel
from yolorep.blocks import BLOCKS, conv_c3, laws
from yolorep.folding import kernel_of, to_conv

fold_file = import_module("yolorep.folding")  # `yolorep.folding` itself is the function


def check(block: str, *dtypes: torch.dtype) -> dict[torch.dtype, grid.Worst]:
    found = grid.worst(block, {dtype: TOLERANCE[dtype] for dtype in dtypes})
    for dtype, worst in found.items():
        assert worst.error <= TOLERANCE[dtype], f"{worst.error:.1e} in {dtype} for {worst.case}"
    return found


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_grid_folds_within_tolerance(block: str, record_property: Callable[[str, object], None]) -> None:
    for dtype, found in check(block, torch.float64, torch.float32).items():
        record_property(f"worst_relative_error_{dtype}", f"{found.error:.1e}")
        record_property(f"layers_{dtype}", found.count)


def test_grid_covers_every_combination() -> None:
    made = {(c.c1 < c.c2, c.c1 > c.c2, c.k, c.s, c.g > 2, c.d) for c in grid.cases("repvgg")}
    assert len(made) == 3 * 3 * 2 * 2 * 2
    assert {c.identity for c in grid.cases("repvgg")} == set(grid.IDENTITIES)


def flattened(kernel: Kernel) -> Kernel:
    """The weight of a grouped kernel repeated over all input channels, and no groups."""
    return replace(kernel, weight=kernel.weight.repeat(1, kernel.groups, 1, 1), groups=1)


def undilated(kernel: Kernel) -> Kernel:
    return replace(kernel, dilation=(1, 1), padding=(kernel.size[0] // 2, kernel.size[1] // 2))


# What goes wrong between the folded kernel and the convolution.
KERNEL_FAULTS: dict[str, Callable[[Kernel], Kernel]] = {
    "bias-dropped": lambda k: replace(k, bias=torch.zeros_like(k.bias)),
    "padding-lost": lambda k: replace(k, padding=(0, 0)),
    "padding-fixed-at-1": lambda k: replace(k, padding=(1, 1)),
    "taps-shifted": lambda k: replace(k, weight=k.weight.roll(1, 3)),
    "dilation-lost": undilated,
    "stride-lost": lambda k: replace(k, stride=(1, 1)),
    "groups-lost": flattened,
    "axes-swapped": lambda k: replace(k, weight=k.weight.transpose(2, 3)),
}


def norm_fault(eps: float | None = None, mean: bool = True, gamma: bool = True) -> Callable[[_BatchNorm], Kernel]:
    """The kernel of a batch norm, with something in it overlooked."""

    def faulty(module: _BatchNorm) -> Kernel:
        shift = module.running_mean.double() * mean
        scale = (module.running_var.double() + (module.eps if eps is None else eps)).rsqrt()
        scale = scale * (module.weight.double() if gamma else 1)
        return Kernel(scale.reshape(-1, 1, 1, 1), module.bias - shift * scale, groups=module.num_features)

    return faulty


NORM_FAULTS = {
    "eps-ignored": norm_fault(eps=0),
    "eps-assumed": norm_fault(eps=1e-5),
    "mean-ignored": norm_fault(mean=False),
    "gamma-ignored": norm_fault(gamma=False),
}


def diagonal_regroup(kernel: Kernel, groups: int) -> Tensor:
    """The identity of a grouped layer on the diagonal of its (out, in // groups) weight, as if there were no groups."""
    if groups == kernel.groups or kernel.groups < kernel.in_channels or kernel.size != (1, 1):
        return algebra_regroup(kernel, groups)
    weight = kernel.weight.new_zeros(kernel.out_channels, kernel.in_channels // groups, 1, 1)
    for channel in range(weight.shape[1]):
        weight[channel, channel] = kernel.weight[channel, 0]
    return weight


algebra_regroup = algebra.regroup


@pytest.fixture
def norm_kernel() -> Iterator[Callable[[Callable[[_BatchNorm], Kernel]], None]]:
    """Register another kernel for batch norms, for the duration of a test."""
    true = kernel_of.dispatch(nn.BatchNorm2d)
    yield lambda faulty: kernel_of.register(nn.BatchNorm2d, faulty)
    kernel_of.register(nn.BatchNorm2d, true)


def assert_grid_fails() -> None:
    with pytest.raises(AssertionError):
        check("repvgg", torch.float64)


@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_grid_notices_a_fault_in_the_convolution(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = KERNEL_FAULTS[fault]
    monkeypatch.setattr(conv_c3, "to_conv", lambda kernel, like: to_conv(faulty(kernel), like))
    assert_grid_fails()


@pytest.mark.parametrize("fault", NORM_FAULTS)
def test_grid_notices_a_fault_in_the_batch_norm(fault: str, norm_kernel: Callable) -> None:
    norm_kernel(NORM_FAULTS[fault])
    assert_grid_fails()


def test_grid_notices_an_identity_written_without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "regroup", diagonal_regroup)
    assert_grid_fails()


def test_grid_notices_single_precision_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_file, "exact", lambda tensor: tensor.detach().float().double().float())
    assert_grid_fails()


def test_grid_notices_a_lost_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    true = laws.summed
    monkeypatch.setattr(laws, "summed", lambda kernels: true(kernels[:-1]))
    assert_grid_fails()


def test_grid_is_whole_again_after_the_faults() -> None:
    check("plain", torch.float32)
