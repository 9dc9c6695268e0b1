"""Compose two kernels into one.

The taps of the composed kernel lie at every sum of an offset of the first kernel and an offset of the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from yolorep.algebra import AXES, Kernel, pair, regroup
from yolorep.errors import FoldError
from yolorep.precision import exact, has_values


def compose(first: Kernel, second: Kernel) -> Kernel:
    """Return the kernel of ``second(first(x))``.

    The second map pads the *output* of the first. Padding the input instead is equal only if the first map is pointwise
    and maps zero to zero (zero padding), or is pointwise at stride 1 (reflect, replicate or circular padding).

    Raises:
        FoldError: the channels do not match, or the border would not be exact.
    """
    if first.groups or second.groups:
        first = first.over(second.in_channels)
        second = second.over(first.out_channels)
    if first.out_channels != second.in_channels:
        raise FoldError(f"a map to {first.out_channels} channels is followed by one from {second.in_channels}")
    if second.is_gain:
        return _with_gain(first, second)
    mode = _composed_padding_mode(first, second)
    rows, cols = (_composed_axis(first, second, axis) for axis in (0, 1))
    w1, w2, merged = _aligned(first, second)
    through = w2.sum((-2, -1)) @ first.bias.reshape(*w1.shape[:3], 1)
    # A first kernel with finer groups gives each of them a part of every output; the parts of the bias add up.
    through = through.sum(1) if merged.finer_first else through
    return Kernel(
        merged(_composed_weight(w1, w2, rows, cols)),
        through.flatten() + second.bias,
        stride=pair(lambda a: first.stride[a] * second.stride[a]),
        padding=pair(lambda a: first.padding[a] + first.stride[a] * second.padding[a]),
        dilation=(rows.dilation, cols.dilation),
        groups=gcd(first.groups, second.groups),
        padding_mode=mode,
        moments=second.moments,
    )


def _with_gain(first: Kernel, gain: Kernel) -> Kernel:
    """Compose with a second map that only scales and shifts each channel."""
    weight = exact(first.weight)
    # In place if it is a copy: a new tensor of this size costs more than the arithmetic.
    weight = weight.mul_(gain.weight) if weight.dtype != first.weight.dtype else weight * gain.weight
    bias = first.bias * gain.weight.flatten() + gain.bias
    return replace(first, weight=weight, bias=bias, moments=gain.moments, owned=True)


class _ComposedAxis(NamedTuple):
    """The taps of a composed kernel along one axis: their number, and the distance of each part's taps."""

    taps: int
    step1: int
    step2: int
    dilation: int

    def of_first(self, tap2: int, size1: int) -> slice:
        """Return the slice of the first kernel's `size1` taps that one tap of the second reads."""
        start = tap2 * self.step2
        return slice(start, start + (size1 - 1) * self.step1 + 1, self.step1)


@dataclass(frozen=True)
class _Merged:
    """Reshapes a composed weight (groups, parts, out, in, kh, kw) to (out, in // groups, kh, kw).

    finer_first: whether the parts are groups of the first kernel's input, else groups of the second kernel's output.
    """

    finer_first: bool

    def __call__(self, weight: Tensor) -> Tensor:
        if self.finer_first:
            return weight.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return weight.flatten(0, 2)


def _aligned(first: Kernel, second: Kernel) -> tuple[Tensor, Tensor, _Merged]:
    """Return both weights as (groups, parts, out, in, kh, kw); the second's `in` is the first's `out` in each part.

    A depthwise kernel before or after a dense one is thus composed channel by channel, without zeros in between.
    """
    if not first.groups:
        return exact(first.weight)[None, None], exact(second.weight)[None, None], _Merged(False)
    groups = gcd(first.groups, second.groups)
    parts1, parts2 = first.groups // groups, second.groups // groups
    # Beside finer groups of the second, the first has the common groups.
    w1, parts1 = (regroup(first, groups), 1) if parts2 > 1 else (exact(first.weight), parts1)
    w2 = exact(second.weight)
    w1 = w1.reshape(groups, parts1 * parts2, -1, *w1.shape[1:])
    if parts1 == 1:
        return w1, w2.reshape(groups, parts2, -1, *w2.shape[1:]), _Merged(False)
    w2 = w2.reshape(groups, -1, parts1, w2.shape[1] // parts1, *w2.shape[2:]).transpose(1, 2)
    return w1, w2, _Merged(True)


def _composed_weight(w1: Tensor, w2: Tensor, rows: _ComposedAxis, cols: _ComposedAxis) -> Tensor:
    """Return (..., out, in, height, width) for (..., mid, in, kh1, kw1) followed by (..., out, mid, kh2, kw2)."""
    (height1, width1), (height2, width2) = w1.shape[-2:], w2.shape[-2:]
    if height1 * width1 == 1:
        return torch.einsum("gpomhw,gpmc->gpochw", w2, w1[..., 0, 0])
    if height2 * width2 == 1:
        return torch.einsum("gpom,gpmchw->gpochw", w2[..., 0, 0], w1)
    weight = w1.new_zeros(*w2.shape[:3], w1.shape[3], rows.taps, cols.taps)
    for i, j in product(range(height2), range(width2)):
        read = torch.einsum("gpom,gpmchw->gpochw", w2[..., i, j], w1)
        weight[..., rows.of_first(i, height1), cols.of_first(j, width1)] += read
    return weight


def _composed_axis(first: Kernel, second: Kernel, axis: int) -> _ComposedAxis:
    reach1, reach2 = first.dilation[axis], first.stride[axis] * second.dilation[axis]
    many1, many2 = first.size[axis] > 1, second.size[axis] > 1
    dilation = gcd(reach1 * many1, reach2 * many2) or 1
    span = (first.size[axis] - 1) * reach1 + (second.size[axis] - 1) * reach2
    return _ComposedAxis(span // dilation + 1, max(reach1 // dilation, 1), reach2 // dilation, dilation)


def _composed_padding_mode(first: Kernel, second: Kernel) -> str:
    for axis, name in enumerate(AXES):
        if not second.padding[axis]:
            continue
        if first.size[axis] > 1 or first.padding[axis]:
            raise FoldError(
                f"a padded kernel over the {name} follows one that is not pointwise: not exact at the border"
            )
        if second.padding_mode == "zeros" and has_values(first.bias) and bool((first.bias != 0).any()):
            raise FoldError(
                "a zero-padded kernel follows a map with a bias: not exact at the border; "
                "pad before the bias is added (padding on the first convolution, or BNPad2d)"
            )
        if second.padding_mode != "zeros" and first.stride[axis] > 1:
            raise FoldError(f"{second.padding_mode} padding after a stride of {first.stride[axis]} does not compose")
    modes = {k.padding_mode for k in (first, second) if any(k.padding)}
    if len(modes) > 1:
        raise FoldError(f"maps in sequence pad the border differently: {sorted(modes)}")
    return modes.pop() if modes else "zeros"


def on_one_device(first: Kernel, second: Kernel) -> tuple[Kernel, Kernel]:
    """Return both kernels on one device; a layer without tensors (identity, pooling) moves to the other's device."""
    if first.weight.device == second.weight.device:
        return first, second
    if not first.groups:
        return _to(first, second.weight.device), second
    if not second.groups:
        return first, _to(second, first.weight.device)
    raise FoldError(f"layers on different devices: {first.weight.device} and {second.weight.device}")


def _to(kernel: Kernel, device: torch.device) -> Kernel:
    return replace(kernel, weight=kernel.weight.to(device), bias=kernel.bias.to(device))
