"""Linear layers for declaring branches that torch lacks: sums, fixed maps, gains, a padding batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.algebra import Kernel
from yolorep.errors import BlockError, FoldError
from yolorep.folding import children_kernels, kernel_of, sum_of
from yolorep.precision import exact

Pair = tuple[int, int]
MAPS = ("average", "select", "interpolate")


class Sum(nn.ModuleDict):
    """y = sum of the named branches of x; each maps (batch, in, h, w) to the same (batch, out, h', w')."""

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.values())  # type: ignore[return-value]


@kernel_of.register
def _(module: Sum) -> Kernel:
    return sum_of(module.items())


class ChannelMap(nn.Module):
    """A fixed linear map from `in_channels` to `out_channels` at every `stride`-th pixel, without parameters.

    The channel axis of the input is resampled to the number of output channels:
        average: the mean of the adjacent channels that an output channel covers.
        select: the nearest channel. interpolate: linear interpolation between the two neighbours.
    With as many output as input channels, each of them is the identity. With groups, the map is made for one group and
    repeated, so that no group sees another.

    Example:
        >>> ChannelMap(4, 2, "average")(torch.arange(4.0).reshape(1, 4, 1, 1)).flatten().tolist()
        [0.5, 2.5]
    """

    weight: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, mode: str, *, stride: int | tuple[int, int] = 1, groups: int = 1
    ) -> None:
        super().__init__()
        if mode not in MAPS:
            raise BlockError(f"channel map {mode!r} is unknown; accepted: {', '.join(MAPS)}")
        self.mode, self.stride, self.groups = mode, stride, groups
        one_group = _channel_matrix(in_channels // groups, out_channels // groups, mode)
        # Not in the state dict: it is a constant of the shape, and a checkpoint should not be able to change it.
        self.register_buffer("weight", one_group.repeat(groups, 1)[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), stride=self.stride, groups=self.groups)

    def extra_repr(self) -> str:
        out, per_group = self.weight.shape[:2]
        return f"{per_group * self.groups}, {out}, mode={self.mode}, stride={self.stride}, groups={self.groups}"


@kernel_of.register
def _(module: ChannelMap) -> Kernel:
    weight = exact(module.weight)
    stride = (module.stride, module.stride) if isinstance(module.stride, int) else module.stride
    return Kernel(weight, weight.new_zeros(len(weight)), stride=stride, groups=module.groups)


class Filter(nn.Module):
    """A fixed filter for each channel (an average, a frequency prior), without parameters.

    taps: (channels, k, k). The geometry is a depthwise convolution's.
    """

    weight: Tensor

    def __init__(self, taps: Tensor, *, stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        # Not in the state dict, as in `ChannelMap`.
        self.register_buffer("weight", taps[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self.weight)
        return F.conv2d(x, self.weight.to(x.dtype), None, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        channels, _, *size = self.weight.shape
        return f"{channels}, {tuple(size)}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


@kernel_of.register
def _(module: Filter) -> Kernel:
    weight = exact(module.weight)
    geometry = (module.stride, module.padding, module.dilation)
    return Kernel(weight, weight.new_zeros(len(weight)), *geometry, groups=len(weight))


class Scale(nn.Module):
    """y = w x with one learned gain per channel (the scaling vector of arXiv 2204.00826)."""

    def __init__(self, channels: int, value: float = 1.0, **place: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), value, **place))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return str(len(self.weight))


class FixedScale(nn.Module):
    """y = w x with one constant per channel, which is stored with the model and not trained."""

    weight: Tensor

    def __init__(self, channels: int, value: float = 1.0, **place: Any) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((channels,), value, **place))  # hosts train every parameter

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return str(len(self.weight))


@kernel_of.register(Scale)
@kernel_of.register(FixedScale)
def _(module: Scale | FixedScale) -> Kernel:
    weight = exact(module.weight)
    return Kernel(weight[:, None, None, None], torch.zeros_like(weight), groups=len(weight))


class KernelMap(nn.Module):
    """A branch whose kernel is computed from the dense one, for the law `online`.

    `forward` maps the dense kernel, (out, in // groups, kh, kw), to the branch's, of the same shape, dtype and device.
    `weight` is its learned parameter; with a weight of zero the branch must be zero.
    """

    weight: Tensor

    def of(self, dense: Kernel) -> Kernel:
        """Return the kernel of the branch beside a dense convolution.

        Raises:
            FoldError: `forward` gives another shape.
        """
        weight = exact(self(exact(dense.weight)))
        if weight.shape != dense.weight.shape:
            shapes = f"{tuple(weight.shape)} for a dense one of {tuple(dense.weight.shape)}"
            raise FoldError(f"{type(self).__name__} gives a kernel of {shapes}")
        return replace(dense, weight=weight, bias=torch.zeros_like(exact(dense.bias)), owned=False)


class BNPad2d(nn.Module):
    """Batch normalization followed by padding with beta - mean * gamma / sigma, its output for a zero input.

    Between a 1x1 and a kxk convolution it replaces "batch norm, then zero padding", which cannot be folded exactly
    because the border would lack the bias (arXiv 2103.13425, section 3.3).

    The batch norm is a child layer, so that hosts find it when they set eps and momentum or convert to `SyncBatchNorm`.
    """

    def __init__(self, bn: _BatchNorm, padding: int | Pair) -> None:
        super().__init__()
        self.bn = bn
        self.padding = (padding, padding) if isinstance(padding, int) else padding

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        rows, cols = self.padding
        border = self._border().to(y.dtype)[:, None, None]
        return F.pad(y - border, (cols, cols, rows, rows)) + border

    def _border(self) -> Tensor:
        bn: Any = self.bn
        border = -bn.running_mean / torch.sqrt(bn.running_var + bn.eps)
        return border * bn.weight + bn.bias if bn.affine else border

    def extra_repr(self) -> str:
        return f"padding={self.padding}"


@kernel_of.register
def _(module: BNPad2d) -> Kernel:
    kernel = children_kernels([("bn", module.bn)])[0][1]
    return replace(kernel, padding=module.padding, moments=None)


def _channel_matrix(c1: int, c2: int, mode: str) -> Tensor:
    """Return the (c2, c1) matrix that resamples the channel axis from c1 to c2."""
    basis = torch.eye(c1)[:, None]  # each channel alone, as a signal over the channel axis
    if mode == "average":
        columns = F.adaptive_avg_pool1d(basis, c2)
    elif mode == "select":
        columns = F.interpolate(basis, size=c2, mode="nearest-exact")
    else:
        columns = F.interpolate(basis, size=c2, mode="linear", align_corners=False)
    return columns[:, 0].T.contiguous()
