"""The three ways in which a dense convolution, the batch norm and the branches make one linear map.

each: y = BN(conv(x)) + sum of branches, each with a batch norm of its own.
sum: y = BN(conv(x) + sum of branches): one batch norm after the sum.
online: y = BN(W * x), where W, the sum of all kernels, is computed anew at every step: the cost of one convolution.

In `sum` and `online`, layers named `dense_*` follow the convolution on its own path.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from yolorep.algebra import Kernel
from yolorep.composition import compose
from yolorep.folding import chain_of, children_kernels, summed
from yolorep.precision import differentiable
from yolorep.training.joint import joint_sum, pays
from yolorep.training.onednn_overread import pixels_read

if TYPE_CHECKING:
    from yolorep.blocks.conv_c3 import Conv_C3


class Law(NamedTuple):
    """forward: what a block computes before its activation. kernel: the same in evaluation mode, as one kernel."""

    name: str
    forward: Callable[[Conv_C3, Tensor], Tensor]
    kernel: Callable[[Conv_C3], Kernel]


def _each_forward(block: Conv_C3, x: Tensor) -> Tensor:
    joint = block.training and (block.joint if block.joint is not None else pays(x))
    y = joint_sum(block.conv, block.bn, (branch for _, branch in block.branches()), x) if joint else None
    return _separate_forward(block, x) if y is None else y


def _separate_forward(block: Conv_C3, x: Tensor) -> Tensor:
    y = block.bn(block.conv(x))
    for _, branch in block.branches():
        y = y + branch(pixels_read(branch, x))
    return y


def _each_kernel(block: Conv_C3) -> Kernel:
    dense = chain_of([("conv", block.conv), ("bn", block.bn)])
    return summed([dense, *(kernel for _, kernel in children_kernels(block.branches()))])


def _sum_forward(block: Conv_C3, x: Tensor) -> Tensor:
    y = x
    for _, layer in block.dense_path():
        y = layer(y)
    for _, branch in block.branches():
        y = y + branch(pixels_read(branch, x))
    return block.bn(y)


def _online_forward(block: Conv_C3, x: Tensor) -> Tensor:
    return block.bn(block.conv._conv_forward(x, _online_weight(block), None))


@torch.compiler.disable  # dispatch by type is not for a graph; what it costs does not depend on the image
def _online_weight(block: Conv_C3) -> Tensor:
    weight = block.conv.weight
    kind = weight.device.type
    exactly = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with differentiable(), exactly:
        return _before_norm(block).weight.to(weight.dtype)


def _normalized_sum_kernel(block: Conv_C3) -> Kernel:
    return compose(_before_norm(block), children_kernels([("bn", block.bn)])[0][1])


def _before_norm(block: Conv_C3) -> Kernel:
    return summed([chain_of(block.dense_path()), *(kernel for _, kernel in children_kernels(block.branches()))])


LAWS = {
    law.name: law
    for law in (
        Law("each", _each_forward, _each_kernel),
        Law("sum", _sum_forward, _normalized_sum_kernel),
        Law("online", _online_forward, _normalized_sum_kernel),
    )
}
