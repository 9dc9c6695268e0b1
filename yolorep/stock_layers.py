"""Find the stock convolutions of a host's model, and choose those that a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.registry import block_of
from yolorep.blocks.site import Site
from yolorep.errors import BlockError, HostError
from yolorep.host import has_stock_class, is_own_block
from yolorep.policy import entries
from yolorep.precision import has_values

PARTS = ("conv", "bn", "act")
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
    """Return whether a layer is a host's convolution + batch norm + activation, not fused and not edited."""
    if not isinstance(module, nn.Module) or not has_stock_class(module):
        return False
    return isinstance(getattr(module, "bn", None), _BatchNorm) and edited(module) is None


def edited(layer: nn.Module) -> str | None:
    """Return how a layer of a host's convolution class differs from act(bn(conv(x))); None if it does not.

    People edit the class in their tree: an attention inside, another norm or operator, another forward. Branches beside
    such a layer would drop that.
    """
    children = dict(layer.named_children())
    if children.keys() != set(PARTS):
        more = sorted(children.keys() - set(PARTS))
        return f"it has a layer {more[0]!r}" if more else "its activation is not a layer"
    if type(children["conv"]) is not nn.Conv2d:
        return f"its conv is {type(children['conv']).__name__}"
    if not isinstance(children["bn"], _BatchNorm):
        return f"its bn is {type(children['bn']).__name__}"
    kind = type(layer)
    if kind not in _COMPUTES_STOCK:
        _COMPUTES_STOCK[kind] = _computes_stock(layer)
    return (
        None if _COMPUTES_STOCK[kind] else f"the forward of {kind.__module__}.{kind.__name__} computes something else"
    )


def edited_layers(model: nn.Module) -> list[str]:
    """Return a line for each kind of edit of stock convolutions in `model`: the layers' names and the difference."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        unfused = has_stock_class(module) and hasattr(module, "bn") and not isinstance(module, Conv_C3)
        difference = edited(module) if unfused else None
        if difference:
            found.setdefault(difference, []).append(name)
    return [f"{names[0]}{_and_more(names)}: {difference}" for difference, names in found.items()]


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more layers" if len(names) > 1 else ""


_COMPUTES_STOCK: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def _computes_stock(layer: nn.Module) -> bool:
    """Return whether the layer's class computes act(bn(conv(x))), by its output on noise."""
    if not all(has_values(tensor) for tensor in layer.state_dict().values()):
        return True
    parts: dict[str, Any] = {name: deepcopy(part).cpu().float().eval() for name, part in layer.named_children()}
    copy = layer.__new__(type(layer))
    copy.__dict__.update({**layer.__dict__, "_modules": parts})
    reach = max(d * (k - 1) + 1 for d, k in zip(parts["conv"].dilation, parts["conv"].kernel_size, strict=True))
    random = torch.Generator().manual_seed(0)
    x = torch.rand(1, parts["conv"].in_channels, reach + 3, reach + 4, generator=random)
    try:
        with torch.no_grad():
            return torch.equal(type(layer).forward(copy, x), parts["act"](parts["bn"](parts["conv"](x))))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):  # of an edited forward
        return False


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
    changes = edited_layers(model)
    if changes:
        return HostError(f"{kind}: its convolutions are edited, so that none can be expanded ({changes[0]})")
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
