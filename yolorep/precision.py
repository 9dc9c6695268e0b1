"""The precision in which kernels are computed: float64, cast once at the end, or as it is where gradients must pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from yolorep.algebra import has_values
from yolorep.errors import FoldError

_DIFFERENTIABLE = ContextVar("differentiable", default=False)


def exact(tensor: Tensor) -> Tensor:
    """`tensor` in float64, on its own device (on the CPU where the device has no float64).

    Under `differentiable()`: as it is, or in float32 if it is narrower, for gradients to pass through.
    """
    if _DIFFERENTIABLE.get():
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


@contextmanager
def differentiable() -> Iterator[None]:
    """Within it `kernel_of` and what builds on it compute in the parameters' own dtype, and can be trained through."""
    token = _DIFFERENTIABLE.set(True)
    try:
        yield
    finally:
        _DIFFERENTIABLE.reset(token)


def is_channels_last(weight: Tensor) -> bool:
    """Whether a 4-d weight is stored channels_last and not, at the same time, in the default order."""
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def cast(exact: Tensor, like: Tensor) -> Tensor:
    """`exact` in the dtype, on the device and in the memory format of `like`; refuses values the dtype cannot hold.

    Raises:
        FoldError: a value is not finite, before the cast or after it.
    """
    value = exact.detach().to(device=like.device, dtype=like.dtype)
    if has_values(value) and not bool(torch.isfinite(value).all()):
        raise FoldError(f"the folded values are not finite in {like.dtype}; fold in a wider type")
    if value.dim() == 4 and like.dim() == 4 and is_channels_last(like):
        return value.clone(memory_format=torch.channels_last)
    return value.clone(memory_format=torch.contiguous_format)
