"""A sum of batch-normalized convolutions of one input as one autograd function with a hand-written backward pass.

y = sum over terms j of BN_j(u_j), with u_j = W_j * x, or u_j = x for an identity. Autograd keeps every u_j for the
backward pass and writes out every normalized term and every partial sum. Here a term may be computed again from x in
the backward pass (activation recomputation, arXiv 1604.06174), and the terms are added in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CACHED = 2**18  # values: 1 MB in float32, which stays in a processor's cache
TENSORS = 4  # the first fields of a term: the tensors that it is differentiable by


class Geometry(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Running(NamedTuple):
    """Running statistics of a batch norm, (out,) each, and the share of a batch in them."""

    mean: Tensor
    var: Tensor
    momentum: float


class Term(NamedTuple):
    """BN(u), with u = kernel * x + bias, or u = x without a kernel.

    kernel: (out, in // groups, kh, kw), in the dtype of x. bias, gamma, beta: (out,) or None.
    running: the statistics that the batch moves; None if nothing is tracked.
    frozen: normalize by `running` instead of the statistics of the batch, and leave it as it is.
    kept: keep u for the backward pass instead of computing it again.
    """

    kernel: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    running: Running | None
    eps: float
    frozen: bool
    kept: bool
    geometry: Geometry | None = None

    def read(self, x: Tensor) -> Tensor:
        """Return u for the input x (batch, in, h, w)."""
        return x if self.geometry is None else F.conv2d(x, self.kernel, self.bias, *self.geometry)  # type: ignore[arg-type]


class Normalized(NamedTuple):
    """A normalized term. mean, scale: (out,) each, with scale = 1 / sqrt(var + eps)."""

    values: Tensor
    mean: Tensor
    scale: Tensor


class _NormalizedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Sequence[tuple], x: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        with _without_autocast(x):
            terms = _terms(options, tensors)
            y: Tensor | None = None
            statistics: list[Tensor] = []
            kept: list[Tensor | None] = []
            for term in terms:
                u = term.read(x)
                y, mean, scale = _added(term, u, y)
                statistics += [mean, scale]
                kept.append(u if term.kept else None)
        ctx.options = options
        ctx.save_for_backward(x, *kept, *statistics, *tensors)
        return y  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = len(ctx.options)
        kept, statistics = saved[:count], saved[count : 3 * count]
        if grad is None:
            return (None,) * (2 + TENSORS * count)
        _, needs_x, *needs = ctx.needs_input_grad
        grad_x: Tensor | None = None
        grads: list[Tensor | None] = []
        with _without_autocast(x):
            for j, (term, u) in enumerate(zip(_terms(ctx.options, saved[3 * count :]), kept, strict=True)):
                wanted = (needs_x, *needs[TENSORS * j : TENSORS * (j + 1)])
                part, *own = _term_backward(term, grad, x, u, statistics[2 * j], statistics[2 * j + 1], wanted)
                grad_x = part if grad_x is None or part is None else grad_x.add_(part)
                grads += own
        return None, grad_x, *grads


def normalized_sum(terms: Sequence[Term], x: Tensor) -> Tensor:
    """Return the sum of the terms of x, and move their running statistics.

    x: (batch, in, h, w) to (batch, out, h', w'). Differentiable once, by x and by the kernel, bias, gamma and beta of
    each term. Autocast is off inside both passes: the arithmetic uses the dtypes of x and of the kernels.
    """
    tensors = [tensor for term in terms for tensor in term[:TENSORS]]
    return _NormalizedSum.apply([term[TENSORS:] for term in terms], x, *tensors)


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of u (batch, out, h, w), (out,) each, float32 at least.

    For contiguous tensors on a CPU, where torch's own kernel takes five times as long. The values are centred, a few
    images at a time, and corrected for the remainder of the rounded mean.
    """
    channels, dtype = u.shape[1], torch.promote_types(u.dtype, torch.float32)
    rows = u.flatten(2)
    rough = rows.mean((0, 2), dtype=dtype)
    first, second = torch.zeros_like(rough), torch.zeros_like(rough)
    for part in rows.split(images_at_once(u)):
        centred = part - rough[:, None]
        first += centred.sum((0, 2))
        second += centred.square_().sum((0, 2))
    count = u.numel() // channels
    return rough + first / count, second / count - (first / count).square()


def images_at_once(u: Tensor) -> int:
    """Return how many images of u to process together: on a CPU, as many as fit in its cache."""
    return max(1, CACHED // u[0].numel()) if u.device.type == "cpu" else len(u)


def _without_autocast(x: Tensor) -> Any:
    return torch.autocast(x.device.type, enabled=False)


def _terms(options: Sequence[tuple], tensors: Sequence[Any]) -> list[Term]:
    return [Term(*tensors[TENSORS * j : TENSORS * (j + 1)], *rest) for j, rest in enumerate(options)]


def _added(term: Term, u: Tensor, y: Tensor | None) -> Normalized:
    """Return y + BN(u), written over y, with the statistics that normalized u."""
    if term.frozen or (u.device.type == "cpu" and u.is_contiguous()):
        return _added_in_parts(term, u, y)
    # One kernel that measures, normalizes and tracks.
    mean, var, momentum = term.running or (None, None, 0.0)
    values, mean, scale = torch.ops.aten.native_batch_norm(
        u, term.gamma, term.beta, mean, var, True, momentum, term.eps
    )
    return Normalized(values if y is None else y.add_(values), mean, scale)


def _added_in_parts(term: Term, u: Tensor, y: Tensor | None) -> Normalized:
    """`_added` by known statistics, all terms but the first made and added a few images at a time."""
    if term.frozen:
        mean, var, _ = term.running  # type: ignore[misc]
    else:
        mean, var = moments(u)
        _track_(term.running, mean, var, u.numel() // u.shape[1])

    def normalized(part: Tensor) -> Tensor:
        return F.batch_norm(part, mean, var, term.gamma, term.beta, False, 0.0, term.eps)

    if y is None:
        y = normalized(u)
    else:
        at_once = images_at_once(y)
        for part, of_u in zip(y.split(at_once), u.split(at_once), strict=True):
            part += normalized(of_u)
    return Normalized(y, mean, torch.rsqrt(var + term.eps))


def _track_(running: Running | None, mean: Tensor, var: Tensor, count: int) -> None:
    """Move running statistics by the mean and the biased variance of `count` values, as torch does."""
    if running is not None:
        running.mean.lerp_(mean, running.momentum)
        running.var.lerp_(var * (count / (count - 1)), running.momentum)


def _term_backward(
    term: Term, grad: Tensor, x: Tensor, u: Tensor | None, mean: Tensor, scale: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the four tensors of a term, None for those that are not needed."""
    needs_x, needs_kernel, needs_bias, needs_gamma, needs_beta = needs
    inner = needs_x or needs_kernel or needs_bias
    if not (inner or needs_gamma or needs_beta):
        return (None,) * (1 + TENSORS)
    u = term.read(x) if u is None else u
    affine = term.gamma is not None
    known = term.running[:2] if term.frozen and term.running else (None, None)
    grad_u, gamma, beta = torch.ops.aten.native_batch_norm_backward(
        grad, u, term.gamma, *known, mean, scale, not term.frozen, term.eps, [inner, affine, affine]
    )
    outer = gamma if needs_gamma else None, beta if needs_beta else None
    if term.geometry is None or not inner:
        return grad_u if inner else None, None, None, *outer
    del u  # as large as what comes next
    stride, padding, dilation, groups = term.geometry
    sizes = None if term.bias is None else [len(term.bias)]
    mask = [needs_x, needs_kernel, needs_bias]
    of_conv = torch.ops.aten.convolution_backward(
        grad_u, x, term.kernel, sizes, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return *of_conv, *outer
