"""A convolution with the sum of a dense, a 1x1 and a diagonal kernel that keeps no more than a plain convolution.

Autograd would keep the sum, which is as large as the dense kernel. Here it is computed again in the backward pass, but
for its cast under autocast, which is kept as that of a plain convolution's kernel is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from yolorep.algebra import centre
from yolorep.training.joint import compute_dtype, observed
from yolorep.training.joint_step import Geometry


class KernelSum(NamedTuple):
    """W = dense + scale * small at the centre + diagonal on the centre's diagonal.

    dense: (out, in // groups, kh, kw). small: (out, in // groups, 1, 1), scale: (out,), both or neither.
    diagonal: (out, 1, 1, 1) or None; a channel is then added to itself.
    """

    dense: Tensor
    small: Tensor | None
    scale: Tensor | None
    diagonal: Tensor | None
    groups: int

    def weight(self) -> Tensor:
        """Return W, differentiable."""
        weight = self.dense.clone()
        middle = centre(weight)
        if self.small is not None and self.scale is not None:
            middle.addcmul_(self.small, self.scale[:, None, None, None])
        if self.diagonal is not None:
            diagonal_of(middle, self.groups).add_(self.diagonal.view(self.groups, -1))
        return weight


class _MergedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, geometry: Geometry, x: Tensor, dense: Tensor, *others: Tensor | None) -> Tensor:
        ctx.geometry = geometry
        weight = _sum_of(dense, others, geometry.groups).weight().to(x.dtype)
        # Under autocast, a plain convolution keeps a cast of its kernel too.
        ctx.save_for_backward(x, None if x.dtype == dense.dtype else weight, dense, *others)
        return F.conv2d(x, weight, None, *geometry)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, dense, *others = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        kernels = _sum_of(dense, others, groups)
        _, needs_x, *needs = ctx.needs_input_grad
        weight = kernels.weight() if weight is None else weight
        mask = [needs_x, any(needs), False]
        grad_x, whole, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
        )
        return None, grad_x, *(_gradients(whole.to(dense.dtype), kernels, needs) if any(needs) else (None,) * 4)


def merged_conv(x: Tensor, conv: nn.Conv2d, kernels: KernelSum) -> Tensor:
    """Return conv(x) with W instead of the weight of `conv`, (batch, in, h, w) to (batch, out, h', w').

    Differentiable once, by x and the kernels, where nothing looks on; else by autograd's own means, which keep W.
    """
    known = x.device.type in ("cpu", "cuda") and not isinstance(conv.padding, str) and conv.padding_mode == "zeros"
    cast = known and torch.is_autocast_enabled(x.device.type)
    if not known or observed(x) or not torch.is_grad_enabled() or not (cast or kernels.dense.dtype == x.dtype):
        return conv._conv_forward(x, kernels.weight(), None)
    geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
    return _MergedConv.apply(geometry, x.to(compute_dtype(x)), *kernels[:-1])


def diagonal_of(middle: Tensor, groups: int) -> Tensor:
    """Return a view of the entries (c, c) of a 1x1 kernel (out, in // groups, 1, 1): (groups, out // groups)."""
    out, per_group = middle.shape[:2]
    return middle.view(groups, out // groups, per_group).diagonal(dim1=1, dim2=2)


def _sum_of(dense: Tensor, others: Sequence[Tensor | None], groups: int) -> KernelSum:
    small, scale, diagonal = others
    return KernelSum(dense, small, scale, diagonal, groups)


def _gradients(whole: Tensor, kernels: KernelSum, needs: list[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradients of dense, small, scale and diagonal, from that of W."""
    middle, (dense, small, scale, diagonal) = centre(whole), needs
    by_small = by_scale = by_diagonal = None
    if small:
        by_small = middle * kernels.scale[:, None, None, None]  # type: ignore[index]
    if scale:
        by_scale = (middle * kernels.small).sum((1, 2, 3))  # type: ignore[operator]
    if diagonal:
        by_diagonal = diagonal_of(middle, kernels.groups).reshape(-1, 1, 1, 1)
    return whole if dense else None, by_small, by_scale, by_diagonal
