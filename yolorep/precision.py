"""The precision of folding: float64, cast once at the end, or the parameters' own dtype where gradients must pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from yolorep.errors import FoldError

_DIFFERENTIABLE = ContextVar("differentiable", default=False)


def has_values(tensor: Tensor) -> bool:
    """Return False for meta and fake tensors, which have shapes and devices but no values."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def exact(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64 on its device (on the CPU where the device has no float64), detached.

    Under `differentiable()`: `tensor` itself, or in float32 if it is narrower, attached to the graph.
    """
    if _DIFFERENTIABLE.get():
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


@contextmanager
def differentiable() -> Iterator[None]:
    """Have `kernel_of` compute in the dtype of the parameters, attached to the graph, for the duration of the block."""
    token = _DIFFERENTIABLE.set(True)
    try:
        yield
    finally:
        _DIFFERENTIABLE.reset(token)


def is_channels_last(weight: Tensor) -> bool:
    """Return whether a 4-d weight is stored channels_last and not, at the same time, in the default order."""
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def cast(exact: Tensor, like: Tensor) -> Tensor:
    """Return `exact` in the dtype, on the device and in the memory format of `like`, as a new tensor.

    Raises:
        FoldError: a value is not finite, before the cast or after it.
    """
    last = exact.dim() == 4 and like.dim() == 4 and is_channels_last(like)
    layout = torch.channels_last if last else torch.contiguous_format
    value = torch.empty(exact.shape, dtype=like.dtype, device=like.device, memory_format=layout)
    value.copy_(exact.detach())
    if has_values(value) and not _finite(value):
        raise FoldError(f"the folded values are not finite in {like.dtype}; fold in a wider type")
    return value


def _finite(value: Tensor) -> bool:
    """Return whether all values are finite. Their sum tells in one pass, unless it overflows itself."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())
