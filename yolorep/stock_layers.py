"""Find the stock convolutions of a host's model."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Protocol, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.errors import HostError, first_and_more
from yolorep.host import has_stock_class, is_own_block
from yolorep.precision import has_values

PARTS = ("conv", "bn", "act")


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


def is_stock_conv(module: nn.Module) -> TypeGuard[StockConv]:
    """Return whether a layer is a host's convolution + batch norm + activation, not fused and not edited."""
    return has_stock_class(module) and edited(module) is None


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
    if "forward" in vars(layer):
        return "its forward is replaced on the layer itself"
    kind = type(layer)
    if kind not in _COMPUTES_STOCK and all(has_values(tensor) for tensor in layer.state_dict().values()):
        _COMPUTES_STOCK[kind] = _computes_stock(layer)
    if _COMPUTES_STOCK.get(kind, True):  # a layer on the meta device does not tell
        return None
    return f"the forward of {kind.__module__}.{kind.__name__} computes something else"


def edited_layers(model: nn.Module) -> list[str]:
    """Return a line for each kind of edit of stock convolutions in `model`: the layers' names and the difference."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        unfused = has_stock_class(module) and hasattr(module, "bn")
        difference = edited(module) if unfused else None
        if difference:
            found.setdefault(difference, []).append(name)
    return [f"{first_and_more(names)}: {difference}" for difference, names in found.items()]


_COMPUTES_STOCK: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def _computes_stock(layer: nn.Module) -> bool:
    """Return whether the layer's class computes act(bn(conv(x))), by its output on noise."""
    parts: dict[str, Any] = {name: deepcopy(part).cpu().float().eval() for name, part in layer.named_children()}
    copy = layer.__new__(type(layer))
    copy.__dict__.update({**layer.__dict__, "_modules": parts})
    reach = max(d * (k - 1) for d, k in zip(parts["conv"].dilation, parts["conv"].kernel_size, strict=True))
    random = torch.Generator().manual_seed(0)
    x = torch.rand(1, parts["conv"].in_channels, reach + 4, reach + 5, generator=random, dtype=torch.float32)
    try:
        with torch.no_grad():
            return torch.equal(type(layer).forward(copy, x), parts["act"](parts["bn"](parts["conv"](x))))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):  # of an edited forward
        return False


def rep_blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks in `model` that still have their branches."""
    return [name for name, m in model.named_modules() if isinstance(m, Conv_C3) and not m.deployed]


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
