"""The three ways in which a convolution, its batch norm and the branches make one linear map.

each: y = BN(conv(x)) + sum of the branches, each with a batch norm.
sum: y = BN(conv(x) + sum of the branches): one batch norm after the sum.
online: y = BN(W * x), with W the sum of all kernels, computed at every step: the cost of one convolution.

In `sum` and `online`, layers named `dense_*` follow the convolution before the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.algebra import Kernel
from yolorep.composition import compose
from yolorep.errors import BlockError
from yolorep.folding import chain_of, children_kernels, summed
from yolorep.precision import differentiable
from yolorep.training.joint import joint_sum, pays
from yolorep.training.onednn_overread import pixels_read


class Parts(NamedTuple):
    """The layers of one block, by name.

    branches: added to the dense path. dense_path: layers between the convolution and the sum.
    """

    conv: nn.Conv2d
    bn: _BatchNorm
    branches: Mapping[str, nn.Module]
    dense_path: Mapping[str, nn.Module]

    @property
    def hooked(self) -> bool:
        """Whether a layer that a squeezed kernel passes over has forward hooks."""
        layers = (layer for top in (*self.branches.values(), *self.dense_path.values()) for layer in top.modules())
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


# The kernel (out, in // groups, kh, kw) of all parts before the batch norm, in closed form, differentiable; None where
# the form does not cover these parts.
Squeeze = Callable[[Parts], Tensor | None]


class Law(NamedTuple):
    """How parts compute.

    forward(parts, x, joint, squeeze): the output before the activation.
    kernel(parts): the same map in eval mode, as a kernel.
    """

    name: str
    forward: Callable[[Parts, Tensor, bool | None, Squeeze | None], Tensor]
    kernel: Callable[[Parts], Kernel]


def law_of(name: str) -> Law:
    """Return the law of this name.

    Raises:
        BlockError: there is none.

    Example:
        >>> law_of("sum").name
        'sum'
    """
    if name not in LAWS:
        raise BlockError(f"law {name!r} is unknown; accepted: {', '.join(LAWS)}")
    return LAWS[name]


def _each_forward(parts: Parts, x: Tensor, joint: bool | None, _: Squeeze | None) -> Tensor:
    if parts.bn.training and (pays(x) if joint is None else joint):
        y = joint_sum(parts.conv, parts.bn, parts.branches.values(), x)
        if y is not None:
            return y
    return _with_branches(parts.bn(parts.conv(x)), parts, x)


def _with_branches(y: Tensor, parts: Parts, x: Tensor) -> Tensor:
    for branch in parts.branches.values():
        y = y + branch(pixels_read(branch, x))
    return y


def _each_kernel(parts: Parts) -> Kernel:
    dense = chain_of([("conv", parts.conv), ("bn", parts.bn)])
    return summed([dense, *(kernel for _, kernel in children_kernels(parts.branches.items()))])


def _sum_forward(parts: Parts, x: Tensor, *_: object) -> Tensor:
    y = parts.conv(x)
    for layer in parts.dense_path.values():
        y = layer(y)
    return parts.bn(_with_branches(y, parts, x))


def _online_forward(parts: Parts, x: Tensor, _: bool | None, squeeze: Squeeze | None) -> Tensor:
    kind = x.device.type
    exactly = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exactly:
        weight = None if squeeze is None or parts.hooked else squeeze(parts)
        if weight is None:
            weight = _online_weight(parts)
    return parts.bn(parts.conv._conv_forward(x, weight.to(parts.conv.weight.dtype), None))


@_disable_dynamo  # dispatch by layer type breaks a graph anyway; `torch.compiler.disable` would import the compiler
def _online_weight(parts: Parts) -> Tensor:
    with differentiable():
        return _before_norm(parts).weight


def _normalized_sum_kernel(parts: Parts) -> Kernel:
    return compose(_before_norm(parts), children_kernels([("bn", parts.bn)])[0][1])


def _before_norm(parts: Parts) -> Kernel:
    dense = chain_of([("conv", parts.conv), *parts.dense_path.items()])
    return summed([dense, *(kernel for _, kernel in children_kernels(parts.branches.items()))])


LAWS = {
    law.name: law
    for law in (
        Law("each", _each_forward, _each_kernel),
        Law("sum", _sum_forward, _normalized_sum_kernel),
        Law("online", _online_forward, _normalized_sum_kernel),
    )
}
