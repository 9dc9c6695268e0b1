"""Which stock convolutions of a model get branches: presets, name patterns and layer indices, or a default.

A preset names a part of the network (`backbone`, `neck`, `head`) or a kind of convolution (`bottlenecks`, `3x3`). An
entry of several words takes what all of them name: `neck 3x3` means the 3x3 convolutions of the neck. Several entries
take what any of them names. An entry with a preset leaves out convolutions that do not gain from the block, as a
request without `select` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from yolorep.blocks.registry import block_of
from yolorep.blocks.site import Site
from yolorep.errors import BlockError, DeclarationError
from yolorep.model_yaml import sections
from yolorep.policy import Policy, entries
from yolorep.stock_layers import Named, StockConv

Select = str | int | Sequence[str | int] | Callable[[str, nn.Module], bool] | None
# Why a request leaves a layer alone.
COPIES = "1x1 whose input cannot be added to its output: a branch would copy it"
COSTLY = "depthwise or in an attention: branches would cost more than the layer"


@dataclass(frozen=True)
class Layout:
    """What presets are resolved with.

    sections: name of a part → indices of its layers; empty for a model without a YAML. bottlenecks: their names.
    """

    sections: Mapping[str, range]
    bottlenecks: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, yaml: Any, prefix: str = "") -> Layout:
        """Return the layout of a model, or of its list of layers.

        yaml: the model dictionary; anything else means none. prefix: what the names of these layers begin with in the
        whole model.
        """
        names = (prefix + name for name, module in model.named_modules() if _is_bottleneck_class(type(module)))
        return cls(sections(yaml) if isinstance(yaml, Mapping) else {}, tuple(names))


def chosen(named: Named, select: Select, block: str, identity: str, layout: Layout) -> Named:
    """Return the convolutions of `named` that `select` means; without one, those that gain from the block.

    Raises:
        BlockError: an entry of `select` means none of them, or the block adds no branch to any.
    """
    if select is None:
        return _gaining(named, block, identity, f"any of {len(named)} layers")
    if callable(select):
        result = [(name, layer) for name, layer in named if select(name, layer)]  # type: ignore[arg-type]
        if not result:
            raise BlockError(f"select={select!r} accepts none of the {len(named)} stock convolutions")
        return result
    taken: set[str] = set()
    wanted, idle = entries(select), []
    for entry in wanted:
        matching = [(name, layer) for name, layer in named if _matches(name, layer, entry, layout)]
        if not matching:
            idle.append(entry)
        elif _has_preset(entry):
            matching = _gaining(matching, block, identity, f"any of the {len(matching)} layers that {entry!r} selects")
        taken.update(name for name, _ in matching)
    if idle or not wanted:
        asked = ", ".join(map(repr, idle)) or "an empty list"
        example = repr(named[0][0] if named else "model.1")
        raise BlockError(
            f"select: {asked} matches none of the {len(named)} stock convolutions; accepted: layer indices and name "
            f"patterns, such as {example}, or {', '.join(PRESETS)}"
        )
    return [(name, layer) for name, layer in named if name in taken]


def gains(layer: StockConv, block: str, identity: str) -> bool:
    """Return whether the block's branches fit beside the layer and are not only a copy of its 1x1 convolution."""
    site = Site(layer.conv, layer.bn, identity)
    try:
        return bool(block_of(block).branches(site, of_host=True)) and (site.keeps_shape or not site.pointwise)
    except DeclarationError:
        raise
    except BlockError:
        return False


def why_without_branches(name: str, layer: StockConv, policy: Policy | None) -> str:
    """Return why a stock convolution has no branches beside it: what `expand` says of it, or that it was not asked.

    policy: what the model was expanded by, if it was.
    """
    asked = policy or Policy()
    if asked.select is not None:
        return "not selected"
    site, (height, width) = Site(layer.conv, layer.bn, asked.identity), layer.conv.kernel_size
    if site.pointwise and not site.keeps_shape:
        return COPIES
    known = _is_known(asked.block)
    if known and not gains(layer, asked.block, asked.identity):
        return f"no branch of {asked.block} fits beside a {height}x{width} kernel"
    if _is_costly(name, layer):
        return COSTLY
    if not known:
        return f"whether {asked.block} fits is not known here: its file is not loaded; give it with --plugin"
    return "stock: nothing asks for branches here"


def _is_known(block: str) -> bool:
    try:
        block_of(block)
    except BlockError:
        return False
    return True


def _gaining(named: Named, block: str, identity: str, where: str) -> Named:
    """Return the convolutions that gain from a block; costly ones only where there are no others."""
    gaining = [(name, layer) for name, layer in named if gains(layer, block, identity)]
    result = [(name, layer) for name, layer in gaining if not _is_costly(name, layer)] or gaining
    if not result and named:
        asked = f"block {block!r} with identity {identity!r}"
        raise BlockError(f"{asked} adds no branch to {where}{_reason(named, block, identity)}")
    return result


def _matches(name: str, layer: StockConv, entry: str | int, layout: Layout) -> bool:
    if isinstance(entry, int):
        return _index(name) == entry
    words = entry.split()
    return bool(words) and all(_is(name, layer, word, layout) for word in words)


def _is(name: str, layer: StockConv, word: str, layout: Layout) -> bool:
    """Return whether a layer is what one word of an entry names.

    Raises:
        BlockError: the word is a part of the network, and the model has no YAML that tells the parts.
    """
    if word in KINDS:
        return KINDS[word](name, layer, layout)
    if word not in SECTIONS:
        return fnmatchcase(name, word)
    if not layout.sections:
        raise BlockError(
            f"select: {word!r} needs a model that was built from a YAML; accepted: layer indices and name patterns"
        )
    return _index(name) in layout.sections[word]


def _has_preset(entry: str | int) -> bool:
    return isinstance(entry, str) and any(word in PRESETS for word in entry.split())


def _in_bottleneck(name: str, layer: StockConv, layout: Layout) -> bool:
    return any(name.startswith(f"{bottleneck}.") for bottleneck in layout.bottlenecks)


def _is_3x3(name: str, layer: StockConv, layout: Layout) -> bool:
    return layer.conv.kernel_size == (3, 3)


SECTIONS = ("backbone", "neck", "head")
KINDS: dict[str, Callable[[str, StockConv, Layout], bool]] = {"bottlenecks": _in_bottleneck, "3x3": _is_3x3}
PRESETS = (*SECTIONS, *KINDS)


def _index(name: str) -> int | None:
    """Return the index of the layer in the model's list that holds a module; None for a module outside it."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == "model" and number.isdecimal() else None


def _is_bottleneck_class(kind: type) -> bool:
    """Return whether a class is Bottleneck, GhostBottleneck, RepBottleneck or a user's subclass of one."""
    return any(base.__name__.endswith("Bottleneck") for base in kind.__mro__)


def _is_costly(name: str, layer: StockConv) -> bool:
    """Return whether branches beside the layer cost far more than its share of the network: depthwise, or attention.

    Measured (benchmarks/README.md): their passes over memory cost a training step as much as a dense kernel's,
    and they are a hundredth of the network's multiplications.
    """
    return Site(layer.conv, layer.bn, "none").depthwise or "attn" in name.split(".")


def _reason(named: Named, block: str, identity: str) -> str:
    """Return what the block says of the last of some layers, if it fits beside none."""
    said = []
    for _, layer in named:
        try:
            block_of(block).branches(Site(layer.conv, layer.bn, identity), of_host=True)
        except BlockError as error:
            said.append(f": {error}")
        else:
            return ""
    return said[-1]
