"""The batch norm that follows a folded convolution, with the statistics that training goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.algebra import Kernel
from yolorep.precision import cast, exact


@torch.inference_mode(False)  # so that what is folded under inference mode can still be trained
def calibrated(kernel: Kernel, dense: _BatchNorm) -> tuple[Kernel, _BatchNorm]:
    """`kernel` as a kernel without bias and a batch norm after it: exactly the same in evaluation, any scale given.

    dense: the block's own batch norm, whose type, eps, momentum, dtype and device the new one has.

    Evaluation leaves the scale of the weight and the recorded statistics free. They are chosen for training: mean and
    variance are what the folded batch norms recorded, and where the dense convolution carries a channel, its weight
    keeps its scale. Branches that add nothing thus give back the very layer they were grown on.

    Raises:
        FoldError: a value does not fit the dtype.
    """
    eps, beta = dense.eps, kernel.bias
    scale, var = torch.ones_like(beta), torch.full_like(beta, 1 - eps)
    if kernel.moments is not None and dense.running_var is not None:
        # A variance that overflowed in a float16 checkpoint is infinite: that batch norm then passes on its bias alone.
        known = torch.isfinite(kernel.moments.var) & torch.isfinite(dense.running_var)
        recorded = kernel.moments.mean, *_scale(kernel.moments.var, dense)
        beta, scale, var = (torch.where(known, a, b) for a, b in zip(recorded, (beta, scale, var), strict=True))
    values = {
        "weight": scale * (var + eps).sqrt(),
        "bias": beta,
        "running_mean": (beta - kernel.bias) / scale,
        "running_var": var,
    }
    weight = kernel.weight / scale[:, None, None, None]
    return replace(kernel, weight=weight, bias=torch.zeros_like(beta), moments=None), _norm_like(dense, values)


def _norm_like(dense: _BatchNorm, values: dict[str, Tensor]) -> _BatchNorm:
    """A batch norm that is as `dense` in everything but its `values`, by name, each (channels,)."""
    place: dict[str, Any] = {"device": dense.weight.device, "dtype": dense.weight.dtype}
    norm = type(dense)(dense.num_features, eps=dense.eps, momentum=dense.momentum, **place).train(dense.training)
    for name, value in values.items():
        target = getattr(norm, name)
        target.data = cast(value, target)
    if dense.num_batches_tracked is not None:
        norm.num_batches_tracked = dense.num_batches_tracked.clone()
    for name, parameter in norm.named_parameters():
        parameter.requires_grad = getattr(dense, name).requires_grad
    return norm


def _scale(out_var: Tensor, dense: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(scale, var): the factor from the new convolution's output to the old one's, with the new one's variance."""
    var, gamma = exact(dense.running_var), exact(dense.weight)  # type: ignore[arg-type]
    share = gamma.square() * var / (var + dense.eps)
    carries = (share > 0) & (share >= out_var / 2)
    kept = torch.where(carries, out_var / var, torch.ones_like(var)).sqrt()
    return torch.where(gamma < 0, -kept, kept), torch.where(carries, var, out_var)
