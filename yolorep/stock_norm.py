"""Split a folded kernel into the convolution and the batch norm of a stock layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.algebra import Kernel
from yolorep.folding import to_conv
from yolorep.precision import cast, exact


@torch.inference_mode(False)  # tensors made in inference mode could never be trained
def stock_pair(
    kernel: Kernel, weight: Tensor, dense: _BatchNorm, *, overwrite: bool = False
) -> tuple[nn.Conv2d, _BatchNorm]:
    """Split `kernel` into a convolution without bias and a batch norm that together equal it in eval mode.

    weight: (out, in // groups, kh, kw), the block's own weight; the new one takes its dtype, device and memory format.
    dense: the block's own batch norm; the new one takes its type, eps, momentum, dtype and device.
    overwrite: `kernel` is not used again, so that its weight may be overwritten if it is `owned`.

    Eval mode leaves the scale of the weight and the recorded statistics free. They are chosen for training: mean and
    variance are what the folded batch norms recorded, and a channel that the dense convolution dominates keeps the
    scale of its weight. A block whose branches add nothing thus gives back the layer that it was expanded from.

    Raises:
        FoldError: a value does not fit the dtype.

    Example:
        >>> from yolorep import Conv_C3
        >>> block = Conv_C3(4, 4, act=False).eval()
        >>> conv, norm = stock_pair(block.linear_kernel(), block.conv.weight, block.bn)
        >>> x = torch.rand(1, 4, 5, 5)
        >>> torch.allclose(norm(conv(x)), block(x), atol=1e-5)
        True
    """
    eps, beta = dense.eps, kernel.bias
    scale, var = torch.ones_like(beta), torch.full_like(beta, 1 - eps)
    if kernel.moments is not None and dense.running_var is not None:
        # A variance that overflowed in a float16 checkpoint is infinite: that batch norm passes on its bias alone.
        known = torch.isfinite(kernel.moments.var) & torch.isfinite(dense.running_var)
        recorded = kernel.moments.mean, *_scale(kernel.moments.var, dense)
        beta, scale, var = (torch.where(known, a, b) for a, b in zip(recorded, (beta, scale, var), strict=True))
    if dense.weight is None:  # affine=False: the convolution carries the scale, and the mean carries the bias
        beta, scale = torch.zeros_like(beta), (var + eps).rsqrt()
    values = {
        "weight": scale * (var + eps).sqrt(),
        "bias": beta,
        "running_mean": (beta - kernel.bias) / scale,
        "running_var": var,
    }
    writable = overwrite and kernel.owned and not kernel.weight.is_inference()
    divide = kernel.weight.div_ if writable else exact(kernel.weight).div
    folded = replace(kernel, weight=divide(scale[:, None, None, None]), bias=torch.zeros_like(beta))
    conv = to_conv(folded, weight)
    conv.bias = None
    return conv, _norm_like(dense, values)


def _norm_like(dense: _BatchNorm, values: dict[str, Tensor]) -> _BatchNorm:
    """Return a batch norm like `dense` with other `values`, by name, each (channels,)."""
    like = next(tensor for tensor in (*dense.parameters(), *dense.buffers()) if tensor.is_floating_point())
    options: dict[str, Any] = {"affine": dense.affine, "device": like.device, "dtype": like.dtype}
    norm = type(dense)(dense.num_features, eps=dense.eps, momentum=dense.momentum, **options).train(dense.training)
    for name, value in values.items():
        target = getattr(norm, name)
        if target is not None:
            target.data = cast(value, target)
    if dense.num_batches_tracked is not None:
        norm.num_batches_tracked = dense.num_batches_tracked.clone()
    for name, parameter in norm.named_parameters():
        parameter.requires_grad = getattr(dense, name).requires_grad
    return norm


def _scale(out_var: Tensor, dense: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the ratio old output / new output and the variance of the new output, per channel."""
    var = exact(dense.running_var)  # type: ignore[arg-type]
    gamma = torch.ones_like(var) if dense.weight is None else exact(dense.weight)
    share = gamma.square() * var / (var + dense.eps)
    carries = (share > 0) & (share >= out_var / 2)
    kept = torch.where(carries, out_var / var, torch.ones_like(var)).sqrt()
    return torch.where(gamma < 0, -kept, kept), torch.where(carries, var, out_var)
