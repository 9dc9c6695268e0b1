"""How far apart two results are, and how far apart they may be. Everything that compares numbers uses these rules.

1. An error is relative to the largest finite magnitude of the expected tensor. Where that is zero, it is absolute.
2. Equal values have error 0, equal infinities included. A NaN on either side makes the error infinite.
3. Tensors of different shapes, and nests with different numbers of tensors, have an infinite error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
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
# An error up to ROUNDINGS times the effect of one random rounding of the weights counts as rounding, but no relative
# error above WORST_ROUNDING does.
ROUNDINGS, WORST_ROUNDING = 8, 1e-3


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


def channel_error(
    expected: Tensor, got: Tensor, floor: float = CHANNEL_FLOOR, allowed: Callable[[Tensor, int], Tensor] | None = None
) -> float:
    """Return the largest relative error of any channel, each judged by its own largest magnitude.

    expected, got: one shape, the first axis is the batch. Hosts put channels on different axes: (batch, channels,
        height, width), (batch, channels, boxes), (batch, boxes, channels). Every axis but the first is therefore taken
        to be the channel axis once, and the worst error is returned.
    floor: the least scale of a channel, as a share of the largest magnitude of the whole tensor.
    allowed: a function that changes the scales, (channels,), of one axis.

    Example:
        >>> expected = torch.tensor([[[600.0, 500.0], [0.5, 0.4]]])  # a box coordinate and a score, of two boxes
        >>> relative_error(expected, expected + 0.001) < 1e-5 < channel_error(expected, expected + 0.001)
        True
    """
    if expected.shape != got.shape:
        return float("inf")
    error, scale = difference(expected, got), _magnitude(expected)
    if not expected.numel() or expected.dim() < 2:
        return _over(_largest(error), _largest(scale))
    worst = 0.0
    for axis in range(1, expected.dim()):
        scales = _along(scale, axis).clamp_min(floor * _largest(scale))
        if allowed is not None:
            scales = allowed(scales, axis)
        worst = max(worst, _largest(_along(error, axis) / scales.where(scales > 0, torch.ones_like(scales))))
    return worst


def rounding_allowance(got: Tensor, perturbed: Tensor, tolerance: float) -> Callable[[Tensor, int], Tensor]:
    """Return a function for `channel_error` that raises the scales of channels that rounding alone changes.

    A channel in which large terms cancel (a batch norm whose mean is a thousand standard deviations) loses digits when
    the weights are rounded, by no fault of the fold. The difference between two outputs of one model, whose weights
    differ by rounding, shows how many.

    got, perturbed: the outputs of a model, and of the same model with its weights perturbed by half a unit in the last
        place. With the scales that are returned, an error of `ROUNDINGS` times that difference is within `tolerance`;
        never more than `WORST_ROUNDING` of the channel, or ten times the tolerance.
    """
    noise = difference(got, perturbed)

    def allowed(scales: Tensor, axis: int) -> Tensor:
        raised = scales + ROUNDINGS * _along(noise, axis) / tolerance
        return raised.minimum(scales * max(WORST_ROUNDING / tolerance, 10.0))

    return allowed


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


_tf32_lock = Lock()
_tf32_users = 0
_tf32_restore: list[Callable[[], None]] = []


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch TF32 and reduced-precision float32 matrix products off for the duration of the block, then restore them.

    The switches belong to the process, not to the thread. Blocks may nest and overlap in several threads: the first
    one in saves and switches, the last one out restores. Other threads compute in full float32 meanwhile.

    Example:
        >>> with full_float32():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    global _tf32_users
    with _tf32_lock:
        if not _tf32_users:
            _tf32_restore.append(_switch_off_tf32())
        _tf32_users += 1
    try:
        yield
    finally:
        with _tf32_lock:
            _tf32_users -= 1
            if not _tf32_users:
                _tf32_restore.pop()()


def _switch_off_tf32() -> Callable[[], None]:
    """Switch TF32 off and return the function that restores it.

    torch refuses to read its older switches once the newer ones were set. The older ones are used where they can be,
    so that code that runs meanwhile can still read them.
    """
    backends: Any = torch.backends
    places = [getattr(kind, part) for kind, part in FLOAT32_SWITCHES if hasattr(getattr(kind, part, None), NEWER)]
    modes = [getattr(place, NEWER) for place in places]

    def set_newer(values: list[str]) -> None:
        for place, value in zip(places, values, strict=True):
            setattr(place, NEWER, value)

    def set_older(precision: str, matmul: bool, cudnn: bool) -> None:
        torch.set_float32_matmul_precision(precision)
        if backends.cuda.matmul.allow_tf32 != matmul:  # setting one sets the other
            backends.cuda.matmul.allow_tf32 = matmul
        backends.cudnn.allow_tf32 = cudnn

    try:
        old = (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    except RuntimeError:
        set_newer(["ieee"] * len(places))
        return lambda: set_newer(modes)
    set_older("highest", False, False)

    def undo() -> None:
        set_older(*old)
        set_newer(modes)

    return undo


NEWER = "fp32_precision"
FLOAT32_SWITCHES: list[tuple[Any, str]] = [
    (torch.backends.cuda, "matmul"),
    (torch.backends.cudnn, "conv"),
    (torch.backends.cudnn, "rnn"),
    (torch.backends.mkldnn, "matmul"),
    (torch.backends.mkldnn, "conv"),
    (torch.backends.mkldnn, "rnn"),
]


def _over(error: float, scale: float) -> float:
    return error / scale if scale else error


def _along(values: Tensor, axis: int) -> Tensor:
    """The largest value at each index of one axis."""
    return values.amax([other for other in range(values.dim()) if other != axis])


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
