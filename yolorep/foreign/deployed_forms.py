"""Three deployed forms of a foreign block, each of which its project runs without yolorep.

The object stays, and with it the attributes that a host attached (`i`, `f`, `type`, `np`, hooks, a second reference).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.algebra import Kernel
from yolorep.errors import FoldError
from yolorep.folding import to_conv
from yolorep.stock_norm import stock_pair


class Form(Protocol):
    """A deployed form. gone: attributes of the block that are folded or no longer needed."""

    @property
    def gone(self) -> tuple[str, ...]: ...

    def prepare(self, block: nn.Module, kernel: Kernel) -> Any:
        """Return the new layers in the block's dtype and on its device; do not change the block.

        Raises:
            FoldError: a value does not fit the dtype.
        """

    def commit_(self, block: nn.Module, prepared: Any) -> None:
        """Replace the branches by the prepared layers."""


@dataclass(frozen=True)
class Slot:
    """The project's deployed form: the convolution as attribute `name`, which the block's forward looks for.

    marks: attributes that also mark the block as deployed. emptied: layers after the sum that are folded too, but that
    the forward still calls. before_act: layers after the sum that the deployed forward skips; they move in front of the
    activation.
    """

    name: str
    gone: tuple[str, ...]
    marks: Mapping[str, Any] = field(default_factory=dict)
    emptied: tuple[str, ...] = ()
    before_act: tuple[str, ...] = ()

    def prepare(self, block: nn.Module, kernel: Kernel) -> nn.Conv2d:
        return to_conv(kernel, like=_weight(block)).train(block.training)

    def commit_(self, block: nn.Module, prepared: nn.Conv2d) -> None:
        _drop_(block, self.gone)
        setattr(block, self.name, prepared)
        for name in self.emptied:
            if isinstance(getattr(block, name, None), nn.Module):
                setattr(block, name, nn.Identity())
        for name in self.before_act:
            layer = block._modules.pop(name, None)
            if layer is not None:
                block.act = nn.Sequential(layer, block.act)  # type: ignore[arg-type]
        for name, value in self.marks.items():
            setattr(block, name, value)


@dataclass(frozen=True)
class Stock:
    """The project's convolution + batch norm + activation layer, the class of the branch `like`.

    It can be fused, trained and loaded like any such layer.
    """

    like: str
    gone: tuple[str, ...]

    def prepare(self, block: nn.Module, kernel: Kernel) -> tuple[nn.Conv2d, _BatchNorm, type]:
        like: Any = getattr(block, self.like)
        if not isinstance(getattr(like, "bn", None), _BatchNorm):
            raise FoldError("it is fused: it has no batch norm to carry the bias", self.like)
        conv, norm = stock_pair(kernel, like.conv.weight, like.bn)
        return (
            conv.train(block.training),
            norm,
            getattr(like, "stock_class", type(like)),
        )  # the class that an expanded branch had before

    def commit_(self, block: nn.Module, prepared: tuple[nn.Conv2d, _BatchNorm, type]) -> None:
        act: Any = block.act
        _drop_(block, (*self.gone, "act"))
        block.__class__ = prepared[2]
        block.conv, block.bn, block.act = *prepared[:2], act


@dataclass(frozen=True)
class Alone:
    """A sequence of one convolution, for projects that replace the block by a plain convolution."""

    gone: tuple[str, ...]

    def prepare(self, block: nn.Module, kernel: Kernel) -> nn.Conv2d:
        return to_conv(kernel, like=_weight(block)).train(block.training)

    def commit_(self, block: nn.Module, prepared: nn.Conv2d) -> None:
        _drop_(block, self.gone)
        block.__class__ = nn.Sequential
        block.add_module("conv", prepared)


def _weight(block: nn.Module) -> Tensor:
    """Return the weight whose dtype, device and memory format the folded convolution takes: the largest."""
    return max((p for p in block.parameters() if p.dim() == 4), key=Tensor.numel)


def _drop_(block: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        for place in (block._modules, block._parameters, block._buffers, block.__dict__):
            place.pop(name, None)
