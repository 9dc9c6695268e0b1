"""The algebra of linear convolutional maps, on tensors only.

A `Kernel` is the map ``y = W * x + b`` with its geometry (stride, padding, dilation, groups). Batch normalization in
eval mode, identity, average pooling and channel maps are kernels too. Three operations reduce every block to one
kernel: `compose` (one map after the other, in `yolorep.composition`), `add` (maps side by side) and `over` (fix the
number of channels of a map that is defined for any number). Every operation is exact: it raises `FoldError` if the
result would differ anywhere, the border included.

Along one axis the taps of a kernel read the input at the *offsets* ``t * dilation - padding`` (t = 0 .. k-1) from
``position * stride``. Adding two kernels unites their offsets; composing them adds the offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from math import gcd

import torch
from torch import Tensor

from yolorep.errors import FoldError
from yolorep.precision import exact

Pair = tuple[int, int]
AXES = ("height", "width")


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a kernel's output, (out,) each, as recorded by the batch norms that were folded into it."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Kernel:
    """A convolution as a value.

    weight: (out, in // groups, kh, kw). bias: (out,).
    A layer's weight may stay in a narrower dtype than float64 until the first operation, which computes in float64.
    owned: whether no other object uses `weight`, so that `add` may write its result there.
    With `groups == 0` the kernel is *channel-free*: weight (1, 1, kh, kw), bias (1,), one filter that is applied to
    each channel of any input (an identity, an average pooling). `over` makes it an ordinary kernel.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    moments: Moments | None = None
    owned: bool = False

    @property
    def size(self) -> Pair:
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1]) * max(self.groups, 1)

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def is_gain(self) -> bool:
        """Whether the kernel only scales and shifts each channel."""
        still = self.size == (1, 1) == self.stride and not any(self.padding)
        return still and self.groups == self.in_channels == self.out_channels

    def over(self, channels: int) -> Kernel:
        """Return a channel-free kernel as the depthwise kernel over `channels` channels; any other kernel unchanged."""
        if self.groups:
            return self
        return replace(
            self, weight=self.weight.repeat(channels, 1, 1, 1), bias=self.bias.repeat(channels), groups=channels
        )


def add(kernels: list[Kernel], *, overwrite: bool = False) -> Kernel:
    """Return the kernel of ``sum(k(x) for k in kernels)``.

    overwrite: the caller does not use `kernels` again, so that the result may overwrite a weight that is `owned`.

    Raises:
        FoldError: the kernels differ in channels, stride or output size, or pad the same border differently.

    Example:
        >>> one = Kernel(torch.ones(1, 1, 1, 1), torch.zeros(1))
        >>> add([one, one]).weight.item()
        2.0
    """
    sized = next((k for k in kernels if k.groups), None)
    if sized is not None:
        kernels = [k.over(sized.in_channels) for k in kernels]
    shapes = {(k.in_channels, k.out_channels) for k in kernels}
    if len(shapes) > 1:
        raise FoldError(f"branches map different channels (in, out): {sorted(shapes)}")
    if len({k.stride for k in kernels}) > 1:
        raise FoldError(f"branches have different strides: {sorted({k.stride for k in kernels})}")
    modes = {k.padding_mode for k in kernels if any(k.padding)}
    if len(modes) > 1:
        raise FoldError(f"branches pad the border differently: {sorted(modes)}")
    groups = gcd(*(k.groups for k in kernels)) if sized is not None else 0
    grid = [_union_axis(kernels, axis) for axis in (0, 1)]
    padding, dilation = pair(lambda a: grid[a][1]), pair(lambda a: grid[a][2])
    size = (grid[0][0], grid[1][0])
    weight, rest = _canvas(kernels, groups, size, overwrite)
    for (rows, cols), kernels_there in _by_taps(rest, grid).items():
        weight[..., slice(*rows), slice(*cols)] += reduce(torch.add, (regroup(k, groups) for k in kernels_there))
    bias = torch.stack([k.bias for k in kernels]).sum(0)
    mode = modes.pop() if modes else "zeros"
    stride, moments = kernels[0].stride, _added_moments(kernels)
    return Kernel(weight, bias, stride, padding, dilation, groups, mode, moments, owned=True)


def _canvas(kernels: list[Kernel], groups: int, size: Pair, overwrite: bool) -> tuple[Tensor, list[Kernel]]:
    """Return the sum of the kernels that have the full size of the result, as a new tensor, and the other kernels."""
    whole = [k for k in kernels if k.size == size]
    rest = [k for k in kernels if k.size != size]
    if not whole:
        like = regroup(kernels[0], groups)
        return like.new_zeros(*like.shape[:2], *size), rest
    weights = [regroup(k, groups) for k in whole]
    if len(weights) > 1:
        return reduce(torch.add, weights), rest
    writable = whole[0].groups != groups or (overwrite and whole[0].owned)
    return weights[0] if writable else weights[0].clone(), rest


def _by_taps(kernels: list[Kernel], grid: list[tuple[int, int, int]]) -> dict[tuple, list[Kernel]]:
    """Group kernels by the rows and columns of a grid that their taps lie on, (start, stop, step) each."""
    result: dict[tuple, list[Kernel]] = {}
    for kernel in kernels:
        taps = (_taps(kernel, axis, grid[axis]) for axis in (0, 1))
        result.setdefault(tuple((s.start, s.stop, s.step) for s in taps), []).append(kernel)
    return result


def regroup(kernel: Kernel, groups: int) -> Tensor:
    """Return the kernel's weight for fewer groups: (out, in // groups, kh, kw), with zeros between the old groups."""
    if groups == kernel.groups:
        return exact(kernel.weight)
    inside = kernel.groups // groups  # old groups within each new one
    out, per_group = kernel.out_channels // kernel.groups, kernel.weight.shape[1]
    blocks = exact(kernel.weight).reshape(groups, inside, out, per_group, *kernel.size)
    weight = blocks.new_zeros(groups, inside, out, inside, per_group, *kernel.size)
    diagonal = torch.arange(inside, device=weight.device)
    weight[:, diagonal, :, diagonal] = blocks.transpose(0, 1)
    return weight.reshape(kernel.out_channels, inside * per_group, *kernel.size)


def as_pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size of torch as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def pair(value: Callable[[int], int]) -> Pair:
    """Return `value` of the height's axis (0) and of the width's axis (1)."""
    return value(0), value(1)


def _union_axis(kernels: list[Kernel], axis: int) -> tuple[int, int, int]:
    """Return (size, padding, dilation) of the smallest kernel that has every tap of `kernels` along one axis."""
    shrink = {k.dilation[axis] * (k.size[axis] - 1) - 2 * k.padding[axis] for k in kernels}
    if len(shrink) > 1:
        raise FoldError(f"branches have outputs of different {AXES[axis]}")
    starts = [-k.padding[axis] for k in kernels]
    first = min(starts)
    last = max(s + k.dilation[axis] * (k.size[axis] - 1) for s, k in zip(starts, kernels, strict=True))
    steps = [k.dilation[axis] for k in kernels if k.size[axis] > 1]
    dilation = gcd(*steps, *(s - first for s in starts)) or 1
    return (last - first) // dilation + 1, -first, dilation


def _taps(kernel: Kernel, axis: int, grid: tuple[int, int, int]) -> slice:
    """Return the slice of a (size, padding, dilation) grid that the taps of `kernel` lie on, along one axis."""
    _, padding, dilation = grid
    start = (padding - kernel.padding[axis]) // dilation
    step = kernel.dilation[axis] // dilation if kernel.size[axis] > 1 else 1
    return slice(start, start + step * (kernel.size[axis] - 1) + 1, step)


def _added_moments(kernels: list[Kernel]) -> Moments | None:
    """Return the moments of a sum: the means add exactly, the variances if the branches are uncorrelated.

    Branches without a batch norm recorded no moments and are left out.
    """
    known = [k.moments for k in kernels if k.moments is not None]
    if not known:
        return None
    return Moments(torch.stack([m.mean for m in known]).sum(0), torch.stack([m.var for m in known]).sum(0))


def centre(kernel: Tensor) -> Tensor:
    """Return the view (out, in // groups, 1, 1) of a kernel's centre tap."""
    height, width = (size // 2 for size in kernel.shape[2:])
    return kernel[:, :, height : height + 1, width : width + 1]
