r"""The algebra of linear convolutional maps, on tensors only.

A `Kernel` is the map ``y = W * x + b`` with its geometry (stride, padding, dilation, groups). Batch normalization in
evaluation mode, identity, average pooling and channel maps are kernels too, so that whatever a block declares is
reduced by three operations: `compose` (one after the other), `add` (side by side) and `over` (give channels to a map
that is defined for any number of them). Every operation is exact: it raises `FoldError` where the result would differ
anywhere, the border included.

Along one axis the taps of a kernel read the input at the *offsets* ``t * dilation - padding`` (t = 0 .. k-1) from
``position * stride``. Adding two kernels unites their offsets; composing them adds the offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from yolorep.errors import FoldError

Pair = tuple[int, int]
AXES = ("height", "width")


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a kernel's output, (out,) each, as recorded by the batch norms it was folded from."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Kernel:
    """A convolution as a value.

    weight: (out, in // groups, kh, kw). bias: (out,).
    With `groups == 0` the kernel is *channel-free*: weight (1, 1, kh, kw), bias (1,), one filter applied to each of any
    number of channels (an identity, an average pooling); `over` makes it an ordinary kernel.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    moments: Moments | None = None

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
        """Whether it does no more than scale and shift each channel."""
        still = self.size == (1, 1) == self.stride and not any(self.padding)
        return still and self.groups == self.in_channels == self.out_channels

    def over(self, channels: int) -> Kernel:
        """A channel-free kernel as the depthwise kernel over `channels` channels; any other kernel unchanged."""
        if self.groups:
            return self
        return replace(
            self, weight=self.weight.repeat(channels, 1, 1, 1), bias=self.bias.repeat(channels), groups=channels
        )


def compose(first: Kernel, second: Kernel) -> Kernel:
    """The kernel of ``second(first(x))``.

    The second map pads the *output* of the first. That equals padding the input only where the first is pointwise and
    maps zero to zero (zero padding), or is pointwise at stride 1 (reflecting, replicating or circular padding).

    Raises:
        FoldError: the channels do not meet, or the border would not be exact.
    """
    if first.groups or second.groups:
        first = first.over(second.in_channels)
        second = second.over(first.out_channels)
    if first.out_channels != second.in_channels:
        raise FoldError(f"a map to {first.out_channels} channels is followed by one from {second.in_channels}")
    mode = _composed_padding_mode(first, second)
    rows, cols = (_composed_axis(first, second, axis) for axis in (0, 1))
    w1, w2, merged = _aligned(first, second)
    through = w2.sum((-2, -1)) @ first.bias.reshape(*w1.shape[:3], 1)
    # A first kernel with finer groups gives each of them a part of every output; the parts of the bias add up.
    through = through.sum(1) if merged.finer_first else through
    return Kernel(
        merged(_composed_weight(w1, w2, rows, cols)),
        through.flatten() + second.bias,
        stride=_pair(lambda a: first.stride[a] * second.stride[a]),
        padding=_pair(lambda a: first.padding[a] + first.stride[a] * second.padding[a]),
        dilation=(rows.dilation, cols.dilation),
        groups=gcd(first.groups, second.groups),
        padding_mode=mode,
        moments=second.moments,
    )


def add(kernels: list[Kernel]) -> Kernel:
    """The kernel of ``sum(k(x) for k in kernels)``.

    Raises:
        FoldError: the kernels differ in channels, stride or output size, or pad the same border differently.
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
    padding, dilation = _pair(lambda a: grid[a][1]), _pair(lambda a: grid[a][2])
    weights = [regroup(k, groups) for k in kernels]
    size = (grid[0][0], grid[1][0])
    whole = [weight for weight in weights if weight.shape[2:] == size]
    empty = weights[0].new_zeros(*weights[0].shape[:2], *size)
    weight = reduce(torch.add, whole, empty)
    for kernel, part in zip(kernels, weights, strict=True):
        if part.shape[2:] != size:
            rows, cols = (_taps(kernel, axis, grid[axis]) for axis in (0, 1))
            weight[..., rows, cols] += part
    bias = torch.stack([k.bias for k in kernels]).sum(0)
    mode = modes.pop() if modes else "zeros"
    return Kernel(weight, bias, kernels[0].stride, padding, dilation, groups, mode, _added_moments(kernels))


def regroup(kernel: Kernel, groups: int) -> Tensor:
    """The kernel's weight written with fewer groups: (out, in // groups, kh, kw), zero between the old groups."""
    if groups == kernel.groups:
        return kernel.weight
    inside = kernel.groups // groups  # old groups within each new one
    out, per_group = kernel.out_channels // kernel.groups, kernel.weight.shape[1]
    blocks = kernel.weight.reshape(groups, inside, out, per_group, *kernel.size)
    weight = blocks.new_zeros(groups, inside, out, inside, per_group, *kernel.size)
    diagonal = torch.arange(inside, device=weight.device)
    weight[:, diagonal, :, diagonal] = blocks.transpose(0, 1)
    return weight.reshape(kernel.out_channels, inside * per_group, *kernel.size)


def has_values(tensor: Tensor) -> bool:
    """False for meta and fake tensors, whose shapes and devices can be followed but whose values cannot be read."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def _pair(value: Callable[[int], int]) -> Pair:
    return value(0), value(1)


class _ComposedAxis(NamedTuple):
    """The taps of a composed kernel along one axis: how many, and how far apart the taps of either part lie in them."""

    taps: int
    step1: int
    step2: int
    dilation: int

    def of_first(self, tap2: int, size1: int) -> slice:
        """Where the first kernel's `size1` taps lie, as read by one tap of the second."""
        start = tap2 * self.step2
        return slice(start, start + (size1 - 1) * self.step1 + 1, self.step1)


@dataclass(frozen=True)
class _Merged:
    """How a composed weight (groups, parts, out, in, kh, kw) is read as (out, in // groups, kh, kw).

    finer_first: whether the parts are groups of the first kernel (of its input), or of the second (of its output).
    """

    finer_first: bool

    def __call__(self, weight: Tensor) -> Tensor:
        if self.finer_first:
            return weight.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return weight.flatten(0, 2)


def _aligned(first: Kernel, second: Kernel) -> tuple[Tensor, Tensor, _Merged]:
    """Both weights as (groups, parts, out, in, kh, kw), the second's in being the first's out, in each group and part.

    A depthwise kernel before or after a dense one is thus composed channel by channel, without the zeros between.
    """
    if not first.groups:
        return first.weight[None, None], second.weight[None, None], _Merged(False)
    groups = gcd(first.groups, second.groups)
    parts1, parts2 = first.groups // groups, second.groups // groups
    w1, w2 = first.weight, second.weight
    if parts1 > 1 and parts2 > 1:  # neither's groups are whole groups of the other
        w1, parts1 = regroup(first, groups), 1
    w1 = w1.reshape(groups, parts1 * parts2, -1, *w1.shape[1:])
    if parts1 == 1:
        return w1, w2.reshape(groups, parts2, -1, *w2.shape[1:]), _Merged(False)
    w2 = w2.reshape(groups, -1, parts1, w2.shape[1] // parts1, *w2.shape[2:]).transpose(1, 2)
    return w1, w2, _Merged(True)


def _composed_weight(w1: Tensor, w2: Tensor, rows: _ComposedAxis, cols: _ComposedAxis) -> Tensor:
    """(..., out, in, height, width) from (..., mid, in, kh1, kw1) followed by (..., out, mid, kh2, kw2)."""
    (height1, width1), (height2, width2) = w1.shape[-2:], w2.shape[-2:]
    if w1.shape[2] == 1 and 1 in (height1 * width1, height2 * width2):
        return w2 * w1
    if height1 * width1 == 1 and height2 * width2 > 1:
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
    return _ComposedAxis(span // dilation + 1, max(reach1 // dilation, 1), max(reach2 // dilation, 1), dilation)


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


def _union_axis(kernels: list[Kernel], axis: int) -> tuple[int, int, int]:
    """(size, padding, dilation) of the smallest kernel that has every tap of `kernels` along one axis."""
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
    """Where the taps of `kernel` lie on a (size, padding, dilation) grid along one axis."""
    _, padding, dilation = grid
    start = (padding - kernel.padding[axis]) // dilation
    step = max(kernel.dilation[axis] // dilation, 1) if kernel.size[axis] > 1 else 1
    return slice(start, start + step * (kernel.size[axis] - 1) + 1, step)


def _added_moments(kernels: list[Kernel]) -> Moments | None:
    """Moments of a sum: the means add exactly, the variances as far as the branches are uncorrelated.

    A branch without a batch norm recorded none, and is left out.
    """
    known = [k.moments for k in kernels if k.moments is not None]
    if not known:
        return None
    return Moments(torch.stack([m.mean for m in known]).sum(0), torch.stack([m.var for m in known]).sum(0))
