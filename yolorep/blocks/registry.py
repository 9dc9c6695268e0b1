"""The names under which blocks are asked for, and what a block is given to declare its branches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.linear import MAPS, ChannelMap
from yolorep.errors import BlockError

IDENTITIES = ("auto", "conv", *MAPS, "none")

Declaration = Callable[["Site"], dict[str, nn.Module]]
BLOCKS: dict[str, Declaration] = {}


def register_block(name: str) -> Callable[[Declaration], Declaration]:
    """Make a declaration available as `block=name`. A declaration maps a `Site` to its extra branches, by name.

    Raises:
        BlockError: the name is taken.
    """

    def register(declaration: Declaration) -> Declaration:
        if name in BLOCKS:
            raise BlockError(f"block {name!r} is already registered, by {BLOCKS[name].__module__}")
        BLOCKS[name] = declaration
        return declaration

    return register


def check_options(block: str, identity: str) -> None:
    """Raises:
    BlockError: no block or no identity of that name.
    """
    if not isinstance(block, str) or block not in BLOCKS:
        raise BlockError(f"block {block!r} is unknown; accepted: {', '.join(sorted(BLOCKS))}")
    if identity not in IDENTITIES:
        raise BlockError(f"identity {identity!r} is unknown; accepted: {', '.join(IDENTITIES)}")


@dataclass(frozen=True)
class Site:
    """A dense convolution with its batch norm, beside which a block declares branches."""

    conv: nn.Conv2d
    bn: _BatchNorm
    identity: str

    @property
    def border(self) -> tuple[int, int]:
        """Padding that a 1x1 convolution needs to have the dense convolution's output size: 0 at 'same' padding.

        Raises:
            BlockError: there is none, as with an even kernel.
        """
        dense: Any = self.conv
        axes = zip(dense.padding, dense.dilation, dense.kernel_size, strict=True)
        twice = [2 * padding - dilation * (size - 1) for padding, dilation, size in axes]
        if any(t < 0 or t % 2 for t in twice):
            raise BlockError(
                f"a 1x1 branch does not fit beside a {self.conv.kernel_size} convolution with padding "
                f"{self.conv.padding}; accepted: odd kernels, padding of at least dilation * (k - 1) / 2"
            )
        return twice[0] // 2, twice[1] // 2

    @property
    def pointwise(self) -> bool:
        return self.conv.kernel_size == (1, 1)

    @property
    def keeps_shape(self) -> bool:
        """Whether the input can be added to the output."""
        return self.conv.in_channels == self.conv.out_channels and self.conv.stride == (1, 1) and not any(self.border)

    def conv_bn(self, kernel_size: int | tuple[int, int], padding: int | tuple[int, int]) -> nn.Sequential:
        """A convolution with a batch norm, on the dense one's channels, stride, groups, device and dtype."""
        dense = self.conv
        conv = nn.Conv2d(
            dense.in_channels,
            dense.out_channels,
            kernel_size,
            stride=dense.stride,  # type: ignore[arg-type]
            padding=padding,
            groups=dense.groups,
            bias=False,
            padding_mode=dense.padding_mode if any((padding,) if isinstance(padding, int) else padding) else "zeros",
            **self._place,
        )
        return nn.Sequential(OrderedDict(conv=conv, bn=self.batch_norm(dense.out_channels))).train(self.bn.training)

    def batch_norm(self, features: int) -> _BatchNorm:
        """A fresh batch norm of the dense one's type (SyncBatchNorm included), eps and momentum."""
        kind: Any = type(self.bn)
        known = kind.__init__ is _BatchNorm.__init__ or kind.__module__.startswith("torch.")
        fresh = kind if known else nn.BatchNorm2d
        return fresh(features, eps=self.bn.eps, momentum=self.bn.momentum, **self._place).train(self.bn.training)

    def identity_branch(self) -> dict[str, nn.Module]:
        """The branch that carries the input to the output, as `identity` asks; none for 'none'."""
        if self.identity == "none":
            return {}
        dense = self.conv
        if self.identity == "conv" or (self.identity == "auto" and not self.keeps_shape):
            return {"branch_identity": self.conv_bn(1, self.border)}
        bn = self.batch_norm(dense.out_channels)
        if self.keeps_shape:
            return {"branch_identity": bn}
        if any(self.border):
            raise BlockError(
                f"identity {self.identity!r} needs 'same' padding, got {dense.padding}; accepted: conv, none"
            )
        stride = (dense.stride[0], dense.stride[1])
        channels = ChannelMap(dense.in_channels, dense.out_channels, self.identity, stride=stride, groups=dense.groups)
        branch = nn.Sequential(OrderedDict(map=channels.to(**self._place), bn=bn))
        return {"branch_identity": branch.train(self.bn.training)}

    @property
    def _place(self) -> dict[str, Any]:
        return {"device": self.conv.weight.device, "dtype": self.conv.weight.dtype}


def zero_gain_(branch: nn.Module) -> None:
    """Silence a branch: gamma and beta of its last batch norm become 0, so that it adds nothing until trained.

    Raises:
        BlockError: its last batch norm has no gamma, or it has no batch norm.
    """
    norms = [m for m in branch.modules() if isinstance(m, _BatchNorm)]
    if not norms or not norms[-1].affine:
        raise BlockError(f"a branch ({type(branch).__name__}) has no batch norm with a weight to silence it by")
    nn.init.zeros_(norms[-1].weight)
    nn.init.zeros_(norms[-1].bias)
