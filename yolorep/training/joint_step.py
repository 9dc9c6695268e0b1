"""A sum of batch-normalized convolutions of one input as one differentiable step, its backward pass by hand.

y = sum over terms j of BN_j(u_j), with u_j = W_j * x, or u_j = x for an identity. Autograd, left to itself, keeps every
u_j for the backward pass, and every normalized term and partial sum is written out. Here a term may be computed again
from x in the backward pass (the trade of arXiv 1604.06174), and the terms are added in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CACHED = 2**18  # values: 1 MB in float32, which stays in a processor's cache
TENSORS = 6  # of a term: its first fields


class Geometry(NamedTuple):
    """How a convolution reads its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Term(NamedTuple):
    """BN(u), with u = kernel * x + bias, or u = x without a kernel.

    kernel: (out, in // groups, kh, kw), in the dtype of x. bias, gamma, beta: (out,) or None.
    mean, var: (out,), what the batch norm normalizes by; None until it is known. frozen: it is given, not the batch's.
    kept: whether u is kept for the backward pass, or computed again.
    """

    kernel: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Any
    var: Any
    eps: float
    frozen: bool
    kept: bool
    geometry: Geometry | None = None

    def read(self, x: Tensor) -> Tensor:
        """u of x."""
        return x if self.geometry is None else F.conv2d(x, self.kernel, self.bias, *self.geometry)  # type: ignore[arg-type]

    def measured(self, u: Tensor) -> Term:
        """The term with the statistics of u."""
        mean, var = moments(u)
        return self._replace(mean=mean, var=var)

    def normalized(self, u: Tensor) -> Tensor:
        """(u - mean) / sqrt(var + eps) * gamma + beta."""
        return F.batch_norm(u, self.mean, self.var, self.gamma, self.beta, False, 0.0, self.eps)


class _NormalizedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Sequence[tuple], x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        terms = _terms(options, tensors)
        inputs = [term.read(x) for term in terms]
        terms = [term if term.frozen else term.measured(u) for term, u in zip(terms, inputs, strict=True)]
        kept = [u if term.kept else None for term, u in zip(terms, inputs, strict=True)]
        ctx.options = options
        ctx.save_for_backward(x, *kept, *(tensor for term in terms for tensor in term[:TENSORS]))
        found = [value for term in terms if not term.frozen for value in (term.mean, term.var)]
        ctx.mark_non_differentiable(*found)
        return _added(terms, inputs), *found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = len(ctx.options)
        kept, terms = saved[:count], _terms(ctx.options, saved[count:])
        _, needs_x, *needs = ctx.needs_input_grad
        grad_x: Tensor | None = None
        grads: list[Tensor | None] = []
        for j, (term, u) in enumerate(zip(terms, kept, strict=True)):
            wanted = (needs_x, *needs[TENSORS * j : TENSORS * (j + 1)])
            part, *own = _term_backward(term, grad, x, u, wanted)
            grad_x = part if grad_x is None or part is None else grad_x.add_(part)
            grads += own
        return None, grad_x, *grads


def normalized_sum(terms: Sequence[Term], x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The sum of the terms of x, and the mean and biased variance of each term that is not frozen, (out,) each.

    x: (batch, in, h, w) to (batch, out, h', w'). Differentiable once, by x and the terms' first four tensors.
    """
    tensors = [tensor for term in terms for tensor in term[:TENSORS]]
    y, *found = _NormalizedSum.apply([term[TENSORS:] for term in terms], x, *tensors)
    return y, list(zip(found[::2], found[1::2], strict=True))


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of u (batch, out, h, w), (out,) each, float32 at least."""
    channels, dtype = u.shape[1], torch.promote_types(u.dtype, torch.float32)
    if u.device.type != "cpu" or not u.is_contiguous():
        untouched = torch.zeros(channels, device=u.device, dtype=dtype)  # gives the statistics their dtype
        mean, var = torch.batch_norm_update_stats(u, untouched, untouched.clone(), 0.0)
        return mean.to(dtype), var.to(dtype)
    # torch's own takes five times as long here. Centred, a few images at a time, and corrected for what the rounded
    # mean has left over.
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
    """How many of the images of u to work on, pass after pass, before the next: on a CPU what its cache holds."""
    return max(1, CACHED // u[0].numel()) if u.device.type == "cpu" else len(u)


def _terms(options: Sequence[tuple], tensors: Sequence[Any]) -> list[Term]:
    return [Term(*tensors[TENSORS * j : TENSORS * (j + 1)], *rest) for j, rest in enumerate(options)]


def _added(terms: Sequence[Term], inputs: Sequence[Tensor]) -> Tensor:
    """The sum of the normalized terms, each but the first made and added a few images at a time."""
    y = terms[0].normalized(inputs[0])
    for term, u in zip(terms[1:], inputs[1:], strict=True):
        at_once = images_at_once(y)
        for part, of_u in zip(y.split(at_once), u.split(at_once), strict=True):
            part += term.normalized(of_u)
    return y


def _term_backward(
    term: Term, grad: Tensor, x: Tensor, u: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of x and of the six tensors of a term, those that are needed."""
    needs_x, needs_kernel, needs_bias, needs_gamma, needs_beta, *_ = needs
    inner = needs_x or needs_kernel or needs_bias
    if not (inner or needs_gamma or needs_beta):
        return (None,) * (1 + TENSORS)
    scale = torch.rsqrt(term.var + term.eps)
    norm_backward = torch.ops.aten.native_batch_norm_backward
    u = term.read(x) if u is None else u
    affine = term.gamma is not None
    grad_u, gamma, beta = norm_backward(
        grad, u, term.gamma, term.mean, term.var, term.mean, scale, not term.frozen, term.eps, [inner, affine, affine]
    )
    outer = gamma if needs_gamma else None, beta if needs_beta else None, None, None
    if term.geometry is None or not inner:
        return grad_u if inner else None, None, None, *outer
    del u  # as large as what comes next
    stride, padding, dilation, groups = term.geometry
    sizes = None if term.bias is None else [len(term.bias)]
    mask = [needs_x, needs_kernel, needs_bias]
    convolution_backward = torch.ops.aten.convolution_backward
    of_conv = convolution_backward(
        grad_u, x, term.kernel, sizes, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return *of_conv, *outer
