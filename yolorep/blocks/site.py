"""`Site`: the dense convolution that a block declares its branches for, and constructors of fitting layers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.linear import ChannelMap, Scale
from yolorep.errors import BlockError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """A dense convolution and its batch norm. identity: as for `Conv_C3`."""

    conv: nn.Conv2d
    bn: _BatchNorm
    identity: str

    @property
    def border(self) -> Pair:
        """Padding with which a 1x1 convolution has the dense convolution's output size: 0 at 'same' padding.

        Raises:
            BlockError: there is none, as with an even kernel.
        """
        return self.padding_of(1)

    def padding_of(self, size: int | Pair) -> Pair:
        """Return the padding with which a kernel of this size, dilated as the dense one, gives the dense output size.

        Raises:
            BlockError: there is none, as beside an even kernel.
        """
        dense: Any = self.conv
        sizes = (size, size) if isinstance(size, int) else size
        axes = zip(dense.padding, dense.dilation, dense.kernel_size, sizes, strict=True)
        margins = [(2 * padding - dilation * (k - taps), k - taps) for padding, dilation, k, taps in axes]
        twice = [margin for margin, _ in margins]
        # With an even difference in taps the two kernels have their centres on one grid, whatever the dilation.
        if any(t < 0 or t % 2 or more % 2 for t, more in margins):
            asked = "x".join(map(str, sizes))
            raise BlockError(
                f"a {asked} branch does not fit beside a {dense.kernel_size} convolution with padding "
                f"{dense.padding}; accepted: odd kernels, padding of at least dilation * (k - 1) / 2"
            )
        return twice[0] // 2, twice[1] // 2

    @property
    def pointwise(self) -> bool:
        return self.conv.kernel_size == (1, 1)

    @property
    def depthwise(self) -> bool:
        """Whether each input channel has its own filters."""
        return 1 < self.conv.groups == self.conv.in_channels

    @property
    def keeps_shape(self) -> bool:
        """Whether the input can be added to the output."""
        return self.conv.in_channels == self.conv.out_channels and self.conv.stride == (1, 1) and not any(self.border)

    def convolution(
        self,
        size: int | Pair,
        padding: int | Pair = 0,
        *,
        channels: Pair | None = None,
        stride: Pair | None = None,
        groups: int | None = None,
    ) -> nn.Conv2d:
        """Return a convolution without bias, with the dense one's device and dtype.

        Channels, stride, dilation and groups are the dense one's unless given. A 1x1 convolution has dilation 1.
        """
        dense = self.conv
        into, out = channels or (dense.in_channels, dense.out_channels)
        return nn.Conv2d(
            into,
            out,
            size,
            stride=dense.stride if stride is None else stride,  # type: ignore[arg-type]
            padding=padding,
            dilation=1 if size in (1, (1, 1)) else dense.dilation,  # type: ignore[arg-type]
            groups=dense.groups if groups is None else groups,
            bias=False,
            padding_mode=dense.padding_mode if any((padding,) if isinstance(padding, int) else padding) else "zeros",
            **self.place,
        )

    def conv_bn(self, size: int | Pair, padding: int | Pair) -> nn.Sequential:
        """`convolution` followed by a batch norm."""
        return self.sequence(conv=self.convolution(size, padding), bn=self.batch_norm(self.conv.out_channels))

    def batch_norm(self, features: int) -> _BatchNorm:
        """Return a fresh batch norm with the dense one's type (SyncBatchNorm included), eps and momentum."""
        kind: Any = type(self.bn)
        known = kind.__init__ is _BatchNorm.__init__ or kind.__module__.startswith("torch.")
        fresh = kind if known else nn.BatchNorm2d
        return fresh(features, eps=self.bn.eps, momentum=self.bn.momentum, **self.place).train(self.bn.training)

    def scale(self, value: float) -> Scale:
        """Return a learned gain per output channel, initially `value`."""
        return Scale(self.conv.out_channels, value, **self.place)

    def sequence(self, **layers: nn.Module) -> nn.Sequential:
        """Return the named layers as a sequence, in the dense convolution's training mode."""
        return nn.Sequential(OrderedDict(layers)).train(self.bn.training)

    def identity_branch(self, *, normalized: bool = True) -> dict[str, nn.Module]:
        """Return the branch that carries the input to the output, as `identity` requests; empty for 'none'.

        normalized: end with a batch norm, else with a learned gain that starts at 1.
        """
        if self.identity == "none" or (self.identity == "paper" and not self.keeps_shape):
            return {}
        out = self.conv.out_channels
        last: dict[str, nn.Module] = {"bn": self.batch_norm(out)} if normalized else {"scale": self.scale(1.0)}
        if self.identity == "conv" or (self.identity == "auto" and not self.keeps_shape):
            conv = self.convolution(1, self.border)
            return {"branch_identity": self.sequence(conv=conv, **last) if normalized else conv}
        if self.keeps_shape:
            return {"branch_identity": next(iter(last.values()))}
        if any(self.border):
            raise BlockError(
                f"identity {self.identity!r} needs 'same' padding, got {self.conv.padding}; accepted: conv, none"
            )
        dense = self.conv
        stride = (dense.stride[0], dense.stride[1])
        channels = ChannelMap(dense.in_channels, out, self.identity, stride=stride, groups=dense.groups)
        return {"branch_identity": self.sequence(map=channels.to(**self.place), **last)}

    def asked_identity(self, *, normalized: bool = True) -> dict[str, nn.Module]:
        """Return `identity_branch` if `identity` names one, for blocks whose paper has no identity branch."""
        return {} if self.identity in ("auto", "paper") else self.identity_branch(normalized=normalized)

    @property
    def place(self) -> dict[str, Any]:
        """Device and dtype of the dense convolution."""
        return {"device": self.conv.weight.device, "dtype": self.conv.weight.dtype}
