"""How far apart two results are, and how far apart they may be. Everything that compares numbers uses these rules.

1. An error is relative to the largest finite magnitude of the expected tensor. Where that is zero, it is absolute.
2. Equal values have error 0, equal infinities included. A NaN on either side makes the error infinite.
3. Tensors of different shapes, and nests with different numbers of tensors, have an infinite error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# Largest relative error of two computations of the same function that are asserted to agree, by dtype.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# The same for narrower types, where a decision has to be made: `verify` reports these errors and does not judge them.
NARROW_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
# A channel is judged by its own largest value, but at least by this share of the whole tensor's. Below it, the
# rounding of the terms that cancel in a channel is larger than the channel.
CHANNEL_FLOOR = 1e-3


def relative_error(expected: Any, got: Any) -> float:
    """Return the largest error of `got` relative to the largest magnitude of `expected`.

    expected, got: tensors of one shape, or nests (lists, tuples, dicts) of tensors. In a nest each tensor is compared
        with its counterpart on its own scale, and the worst error is returned. Leaves that are no tensors are ignored.

    Example:
        >>> relative_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.4]))  # doctest: +ELLIPSIS
        0.1000...
        >>> relative_error(torch.zeros(3), torch.full((3,), 0.5))
        0.5
        >>> relative_error([torch.ones(2)], [torch.ones(2), torch.ones(2)])
        inf
    """
    a, b = _tensors(expected), _tensors(got)
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    errors = (_over(largest_difference(x, y), _largest(_magnitude(x))) for x, y in zip(a, b, strict=True))
    return max(errors, default=0.0)


def channel_error(expected: Tensor, got: Tensor, floor: float = CHANNEL_FLOOR) -> float:
    """Return the largest relative error of any channel, each judged by its own largest magnitude.

    expected, got: one shape, the first axis is the batch. Hosts put channels on different axes: (batch, channels,
        height, width), (batch, channels, boxes), (batch, boxes, channels). Every axis but the first is therefore taken
        to be the channel axis once, and the worst error is returned.
    floor: the least scale of a channel, as a share of the largest magnitude of the whole tensor.

    Example:
        >>> expected = torch.tensor([[[600.0, 500.0], [0.5, 0.4]]])  # a box coordinate and a score, of two boxes
        >>> relative_error(expected, expected + 0.001) < 1e-5 < channel_error(expected, expected + 0.001)
        True
    """
    if expected.shape != got.shape:
        return float("inf")
    error, scale = difference(expected, got), _magnitude(expected)
    whole = _largest(scale)
    worst = _over(_largest(error), whole)
    for axis in range(1, expected.dim()) if expected.numel() else ():
        others = [other for other in range(expected.dim()) if other != axis]
        scales = scale.amax(others).clamp_min(floor * whole)
        ratios = error.amax(others) / scales.where(scales > 0, torch.ones_like(scales))
        worst = max(worst, _largest(ratios))
    return worst


def difference(expected: Tensor, got: Tensor) -> Tensor:
    """Return |expected - got| in float64, element by element: 0 where equal, infinite where either is NaN.

    Complex tensors are compared by the magnitude of their difference.

    Raises:
        RuntimeError: the shapes do not broadcast.
    """
    a, b = _double(expected), _double(got)
    error = (a - b).abs()
    return torch.where(a == b, torch.zeros_like(error), error).nan_to_num(nan=float("inf"), posinf=float("inf"))


def largest_difference(expected: Tensor, got: Tensor) -> float:
    """Return the largest |expected - got|: 0 for empty tensors, infinite where either has a NaN.

    Raises:
        RuntimeError: the shapes do not broadcast.
    """
    return _largest(difference(expected, got))


def tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance of a dtype, narrow types included; 0 for one that must be exact.

    Example:
        >>> tolerance(torch.float32), tolerance(torch.float16), tolerance(torch.int64)
        (1e-05, 0.005, 0.0)
    """
    return TOLERANCE.get(dtype, NARROW_TOLERANCE.get(dtype, 0.0))


def _over(error: float, scale: float) -> float:
    return error / scale if scale else error


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _magnitude(tensor: Tensor) -> Tensor:
    """The absolute values in float64, 0 where they are not finite."""
    return _double(tensor).abs().nan_to_num(nan=0.0, posinf=0.0)


def _double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.device.type == "mps":  # which has no float64
        tensor = tensor.cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]
