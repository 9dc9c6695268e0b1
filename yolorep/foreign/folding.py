"""Find the foreign blocks of a model and fold them; compute and prove everything before replacing anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.errors import FoldError
from yolorep.foreign.declared_blocks import BLOCKS
from yolorep.foreign.implicit_head import ImplicitHead
from yolorep.foreign.proof import Kind, folded_layers, proven
from yolorep.foreign.self_folding import OwnFold, own_method

KINDS: tuple[Kind, ...] = (*BLOCKS, ImplicitHead())


@dataclass(frozen=True)
class Folded:
    """A foreign block and the function that commits its fold."""

    name: str
    block: nn.Module
    commit_: Callable[[], None]


def foreign_blocks(model: nn.Module, leave: Iterable[nn.Module] = ()) -> list[tuple[str, nn.Module]]:
    """Return the undeployed blocks of other projects in `model` by name; of nested ones the outermost known.

    leave: blocks to pass over.
    """
    return [(name, block) for name, block, _ in _found("", model, set(map(id, leave)))]


def folded(model: nn.Module, leave: Iterable[nn.Module] = ()) -> list[Folded]:
    """Return the folds of the foreign blocks in `model`; nothing changes until they are committed.

    A block that does not fold, or would not compute the same, is left out with a warning that gives the reason.
    leave: blocks that are left out without a warning.

    Raises:
        FoldError: a block is in training mode.
    """
    result = []
    for name, block, kind in list(_found("", model, set(map(id, leave)))):
        _check_evaluating(name, block, kind)
        try:
            result.append(Folded(name, block, _fold(block, kind)))
        except FoldError as error:
            where = f"{name}: {type(block).__name__}" if name else type(block).__name__
            warnings.warn(f"{where} is left as it is: {error}", stacklevel=2)
    return result


def _found(path: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Module, Kind | OwnFold]]:
    """Yield each block with its path and its declaration, or its own fold if it has no declaration."""
    if id(module) in seen:
        return
    seen.add(id(module))
    kind = next((kind for kind in KINDS if kind.matches(module)), None)
    if kind is not None:
        yield path, module, kind
        return
    children = ((f"{path}.{name}".lstrip("."), child) for name, child in module.named_children())
    inside = [found for name, child in children for found in _found(name, child, seen)]
    yield from inside
    if not inside and own_method(module) and not _is_deployed(module):
        own = OwnFold(module)
        if own.changes:
            yield path, module, own


def _is_deployed(module: nn.Module) -> bool:
    return any(kind.deployed(module) for kind in BLOCKS)


def _check_evaluating(name: str, block: nn.Module, kind: Kind | OwnFold) -> None:
    layers = block.named_modules() if isinstance(kind, OwnFold) else folded_layers(block, kind)
    if any(isinstance(layer, _BatchNorm) and layer.training for _, layer in layers):
        raise FoldError(f"{type(block).__name__} is in training mode; call .eval() first", name)


def _fold(block: nn.Module, kind: Kind | OwnFold) -> Callable[[], None]:
    if isinstance(kind, OwnFold):
        kind.check()
        return kind.commit_
    prepared = proven(block, kind)
    return lambda: kind.commit_(block, prepared)
