"""Find the stock convolutions of a host's model, and choose those that a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.registry import block_of
from yolorep.blocks.site import Site
from yolorep.errors import BlockError, HostError
from yolorep.host import has_stock_class, is_own_block
from yolorep.policy import entries

Select = str | int | Sequence[str | int] | Callable[[str, nn.Module], bool] | None


class StockConv(Protocol):
    """A host's layer act(bn(conv(x)))."""

    conv: nn.Conv2d
    bn: _BatchNorm
    act: nn.Module
    training: bool


Named = list[tuple[str, StockConv]]


def stock_convs(model: nn.Module) -> Iterator[tuple[str, StockConv]]:
    """Yield the unfused stock convolutions in `model` by name, without the branches of the hosts' own rep blocks."""
    branches = {id(branch) for block in model.modules() if is_own_block(block) for branch in block.children()}
    for name, module in model.named_modules():
        if is_stock_conv(module) and id(module) not in branches:
            yield name, module


def is_stock_conv(module: object) -> TypeGuard[StockConv]:
    """Return whether a layer is a host's convolution + batch norm + activation, not fused."""
    known = isinstance(module, nn.Module) and has_stock_class(module)
    return known and isinstance(getattr(module, "bn", None), _BatchNorm)


def rep_blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks in `model` that still have their branches."""
    return [name for name, m in model.named_modules() if isinstance(m, Conv_C3) and not m.deployed]


def chosen(named: Named, select: Select, block: str, identity: str) -> Named:
    """Return the convolutions of `named` that `select` means; without one, those that gain from the block.

    Raises:
        BlockError: an entry of `select` means none of them, or the block adds no branch to any.
    """
    if select is None:
        return _gaining(named, block, identity)
    if callable(select):
        result = [(name, layer) for name, layer in named if select(name, layer)]  # type: ignore[arg-type]
        if not result:
            raise BlockError(f"select={select!r} accepts none of the {len(named)} stock convolutions")
        return result
    wanted = entries(select)
    idle = [entry for entry in wanted if not any(_matches(name, entry) for name, _ in named)]
    if idle or not wanted:
        raise BlockError(
            f"select: {', '.join(map(repr, idle)) or 'an empty list'} matches none of the {len(named)} stock "
            f"convolutions; accepted: layer indices and name patterns, such as {named[0][0] if named else 'model.1'!r}"
        )
    return [(name, layer) for name, layer in named if any(_matches(name, entry) for entry in wanted)]


def gains(layer: StockConv, block: str, identity: str) -> bool:
    """Return whether the block's branches fit beside the layer and add more than a copy of its own 1x1 branch."""
    site = Site(layer.conv, layer.bn, identity)
    try:
        return bool(block_of(block).branches(site)) and (site.keeps_shape or not site.pointwise)
    except BlockError:
        return False


def nothing_to_expand(model: nn.Module) -> HostError:
    """Return the error that says why a model has no stock convolution with a batch norm."""
    kind = type(model).__name__
    if rep_blocks(model):
        return HostError(f"{kind} is already expanded; deploy() it first")
    if any(has_stock_class(module) for module in model.modules()):
        return HostError(f"{kind} is fused (its layers have no batch norm); expand it before fuse()")
    return HostError(f"{kind} has no convolution layer of ultralytics or YOLOv5; accepted: a model of either")


def _gaining(named: Named, block: str, identity: str) -> Named:
    """Return the convolutions that gain from a block; costly ones only where there are no others."""
    gaining = [(name, layer) for name, layer in named if gains(layer, block, identity)]
    result = [(name, layer) for name, layer in gaining if not _is_costly(name, layer)] or gaining
    if not result and named:
        asked = f"block {block!r} with identity {identity!r}"
        raise BlockError(f"{asked} adds no branch to any of {len(named)} layers{_reason(named, block, identity)}")
    return result


def _matches(name: str, wanted: str | int) -> bool:
    if isinstance(wanted, int):
        return f"{name}.".startswith(f"model.{wanted}.")
    return fnmatchcase(name, wanted)


def _is_costly(name: str, layer: StockConv) -> bool:
    """Return whether branches beside the layer cost far more than its share of the network: depthwise, or attention.

    Measured (benchmarks/README.md): their passes over memory cost a training step as much as those of a dense kernel,
    and they are a hundredth of the network's multiplications.
    """
    return Site(layer.conv, layer.bn, "none").depthwise or "attn" in name.split(".")


def _reason(named: Named, block: str, identity: str) -> str:
    """Return what the block says of the last layer, if it fits beside none."""
    reason = ""
    for _, layer in named:
        try:
            block_of(block).branches(Site(layer.conv, layer.bn, identity))
        except BlockError as error:
            reason = f": {error}"
        else:
            return ""
    return reason
