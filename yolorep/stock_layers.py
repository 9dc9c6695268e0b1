"""Which layers of a host's model are stock convolutions, and which of them are meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.registry import block_of
from yolorep.blocks.site import Site
from yolorep.errors import BlockError, HostError
from yolorep.host import is_own_block

Select = str | int | Sequence[str | int] | Callable[[str, nn.Module], bool] | None
Named = list[tuple[str, nn.Module]]

# (module, class) of the hosts' convolution + batch norm + activation layers. Names, so that no host is imported.
STOCK_CONVS = {
    (module, name)
    for module in ("ultralytics.nn.modules.conv", "models.common", "yolov5.models.common")
    for name in ("Conv", "DWConv")
}


def stock_convs(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The hosts' own, unfused convolution layers in `model`, by name, but for the branches of the hosts' rep blocks."""
    branches = {id(branch) for block in model.modules() if is_own_block(block) for branch in block.children()}
    for name, module in model.named_modules():
        unfused = is_stock_conv(module) and isinstance(getattr(module, "bn", None), _BatchNorm)
        if unfused and id(module) not in branches:
            yield name, module


def is_stock_conv(module: nn.Module) -> bool:
    """Whether a layer is, by its class, a host's own convolution + batch norm + activation, fused or not."""
    return (type(module).__module__, type(module).__name__) in STOCK_CONVS


def rep_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks in `model` that still have their branches."""
    return [name for name, m in model.named_modules() if isinstance(m, Conv_C3) and not m.deployed]


def chosen(named: Named, select: Select, block: str, identity: str) -> Named:
    """Those of `named` that `select` means; without one, those that gain from the block.

    Raises:
        BlockError: an entry of `select` means none of them, or the block adds no branch to any.
    """
    if select is None:
        gaining = [(name, layer) for name, layer in named if gains(layer, block, identity)]
        result = [(name, layer) for name, layer in gaining if not _dear(name, layer)] or gaining
        if not result and named:
            asked = f"block {block!r} with identity {identity!r}"
            raise BlockError(f"{asked} adds no branch to any of {len(named)} layers{_reason(named, block, identity)}")
        return result
    if callable(select):
        result = [(name, layer) for name, layer in named if select(name, layer)]
        if not result:
            raise BlockError(f"select={select!r} accepts none of the {len(named)} stock convolutions")
        return result
    entries = listed(select)
    idle = [entry for entry in entries if not any(_matches(name, entry) for name, _ in named)]
    if idle or not entries:
        raise BlockError(
            f"select: {', '.join(map(repr, idle)) or 'an empty list'} matches none of the {len(named)} stock "
            f"convolutions; accepted: layer indices and name patterns, such as {named[0][0] if named else 'model.1'!r}"
        )
    return [(name, layer) for name, layer in named if any(_matches(name, entry) for entry in entries)]


def listed(select: str | int | Sequence[str | int]) -> list[str | int]:
    """One entry or several as a list of name patterns and layer indices.

    Raises:
        BlockError: an entry is neither.
    """
    entries = list(select) if isinstance(select, (list, tuple, set, frozenset)) else [select]
    wrong = [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, (str, int))]
    if wrong:
        raise BlockError(f"select: {wrong[0]!r} is neither a layer index nor a name pattern")
    return entries  # type: ignore[return-value]


def nothing_to_expand(model: nn.Module) -> HostError:
    """Why a model has no stock convolution with a batch norm."""
    if rep_blocks(model):
        return HostError(f"{type(model).__name__} is already expanded; deploy() it first")
    if any(is_stock_conv(m) for m in model.modules()):
        return HostError(f"{type(model).__name__} is fused (its layers have no batch norm); expand it before fuse()")
    kind = type(model).__name__
    return HostError(f"{kind} has no convolution layer of ultralytics or YOLOv5; accepted: a model of either")


def _matches(name: str, wanted: str | int) -> bool:
    if isinstance(wanted, int):
        return f"{name}.".startswith(f"model.{wanted}.")
    return fnmatchcase(name, wanted)


def gains(layer: nn.Module, block: str, identity: str) -> bool:
    """Whether the block's branches fit beside the layer and are more than its own 1x1 once again."""
    site = _site(layer, identity)
    try:
        return bool(block_of(block).branches(site)) and (site.keeps_shape or not site.pointwise)
    except BlockError:
        return False


def _dear(name: str, layer: nn.Module) -> bool:
    """Whether branches beside the layer cost far more than it has of the network: depthwise, or in an attention.

    By measurement (benchmarks/README.md): their passes over memory cost a training step as much as a dense kernel's,
    and they are a hundredth of the network's multiplications.
    """
    return _site(layer, "none").depthwise or "attn" in name.split(".")


def _reason(named: Named, block: str, identity: str) -> str:
    """What the block says of the last layer, if it fits beside none."""
    reason = ""
    for _, layer in named:
        try:
            block_of(block).branches(_site(layer, identity))
        except BlockError as error:
            reason = f": {error}"
        else:
            return ""
    return reason


def _site(layer: nn.Module, identity: str) -> Site:
    return Site(layer.conv, layer.bn, identity)  # type: ignore[arg-type]
