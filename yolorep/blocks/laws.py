"""The ways in which a convolution, its batch norm and the branches make one linear map.

each: y = BN(conv(x)) + sum of the branches, each with a batch norm.
sum: y = BN(conv(x) + sum of the branches): one batch norm after the sum.
online: y = BN(W * x), with W the sum of all kernels, computed at every step: the cost of one convolution.

mask: the stock layer; the optimizer steps its kernel as it would step a sum of kernels.

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
from yolorep.blocks.linear import KernelMap
from yolorep.composition import compose
from yolorep.errors import BlockError, FoldError
from yolorep.folding import chain_of, children_kernels, summed
from yolorep.precision import differentiable
from yolorep.training.joint import joint_sum, pays
from yolorep.training.merged_conv import KernelSum, merged_conv
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


# The kernel (out, in // groups, kh, kw) of all parts before the batch norm, in closed form, differentiable, or the
# kernels that it is the sum of; None where the form does not cover these parts.
Squeeze = Callable[[Parts], Tensor | KernelSum | None]
Term = tuple[str, Kernel]
DENSE_TERM = "dense"


class Law(NamedTuple):
    """How parts compute.

    forward(parts, x, joint, squeeze): the output before the activation.
    terms(parts): the same map in eval mode, as one kernel for each path by name; their sum is the map, but for the
        bias of a batch norm after the sum, which each term has.
    kernel(parts): the same map in eval mode, as one kernel.
    """

    name: str
    forward: Callable[[Parts, Tensor, bool | None, Squeeze | None], Tensor]
    terms: Callable[[Parts], list[Term]]
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


def _each_terms(parts: Parts) -> list[Term]:
    dense = chain_of([("conv", parts.conv), ("bn", parts.bn)])
    return [(DENSE_TERM, dense), *children_kernels(parts.branches.items())]


def _each_kernel(parts: Parts) -> Kernel:
    return summed([kernel for _, kernel in _each_terms(parts)])


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
    if isinstance(weight, KernelSum):
        return parts.bn(merged_conv(x, parts.conv, weight))
    return parts.bn(parts.conv._conv_forward(x, weight.to(parts.conv.weight.dtype), None))


@_disable_dynamo  # dispatch by layer type breaks a graph anyway; `torch.compiler.disable` would import the compiler
def _online_weight(parts: Parts) -> Tensor:
    with differentiable():
        return _before_norm(parts).weight


def _normalized_terms(parts: Parts) -> list[Term]:
    norm, channels = _norm(parts), parts.conv.out_channels
    return [(name, compose(kernel.over(channels), norm)) for name, kernel in _terms_before_norm(parts)]


def _normalized_sum_kernel(parts: Parts) -> Kernel:
    return compose(_before_norm(parts), _norm(parts))


def _norm(parts: Parts) -> Kernel:
    return children_kernels([("bn", parts.bn)])[0][1]


def _before_norm(parts: Parts) -> Kernel:
    return summed([kernel for _, kernel in _terms_before_norm(parts)])


def _terms_before_norm(parts: Parts) -> list[Term]:
    dense = chain_of([("conv", parts.conv), *parts.dense_path.items()])
    return [(DENSE_TERM, dense), *(_branch_term(parts, *branch) for branch in parts.branches.items())]


def _branch_term(parts: Parts, name: str, branch: nn.Module) -> Term:
    if not isinstance(branch, KernelMap):
        return children_kernels([(name, branch)])[0]
    try:
        return name, branch.of(children_kernels([("conv", parts.conv)])[0][1])
    except FoldError as error:
        raise error.within(name) from None


LAWS = {
    law.name: law
    for law in (
        Law("each", _each_forward, _each_terms, _each_kernel),
        Law("sum", _sum_forward, _normalized_terms, _normalized_sum_kernel),
        Law("online", _online_forward, _normalized_terms, _normalized_sum_kernel),
    )
}
MASK = "mask"  # of blocks that only change how the stock layer is trained (`training.gradient_mask`)
