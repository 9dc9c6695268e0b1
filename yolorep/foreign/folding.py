"""Find the foreign blocks of a model and fold them; compute and prove everything before replacing anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.errors import FoldError
from yolorep.foreign.declared_blocks import BLOCKS
from yolorep.foreign.implicit_head import ImplicitHead
from yolorep.foreign.proof import Kind, folded_layers, proven, without_hooks
from yolorep.foreign.self_folding import OwnFold, own_methods

KINDS: tuple[Kind, ...] = (*BLOCKS, ImplicitHead())
# Names of methods that tell of branches, in classes that neither a declaration nor a known method folds.
TELLING = re.compile(r"re_?param|get_equivalent|(to|for)_deploy|(fuse|merge)_(branch|kernel|conv|bn|block)")


@dataclass(frozen=True)
class Folded:
    """A foreign block and the function that commits its fold. note: what a user should know of the result, or empty."""

    name: str
    block: nn.Module
    commit_: Callable[[], None]
    note: str = ""


@dataclass(frozen=True)
class Folds:
    """The folds of a model's foreign blocks, and a sentence for each block that is left, with the reason."""

    folds: list[Folded] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A block, and its declaration or its own fold. instead: the blocks inside it, to fold if it does not fold."""

    name: str
    block: nn.Module
    kind: Kind | OwnFold
    instead: tuple[_Found, ...] = ()


def foreign_blocks(model: nn.Module, leave: Iterable[nn.Module] = ()) -> list[tuple[str, nn.Module]]:
    """Return the undeployed blocks of other projects in `model` by name; of nested ones the outermost known.

    leave: blocks to pass over.
    """
    return [(found.name, found.block) for found in _found("", model, set(map(id, leave)))]


def folded(model: nn.Module, leave: Iterable[nn.Module] = ()) -> Folds:
    """Return the folds of the foreign blocks in `model`; nothing changes until they are committed.

    A block that does not fold, or would not compute the same, is left, and the reason is in the result.
    leave: blocks that are left without a reason.

    Raises:
        FoldError: a block is in training mode.
    """
    result = Folds()
    passed = set(map(id, leave))
    for found in list(_found("", model, set(passed))):
        _fold(found, result)
    taken = {id(module) for fold in result.folds for module in fold.block.modules()}
    result.left.extend(_untried(model, taken | passed))
    return result


def _fold(found: _Found, result: Folds) -> None:
    """Add the fold of a block to the result, or the folds of the blocks inside it, or the reason why it is left."""
    _check_evaluating(found.name, found.block, found.kind)
    try:
        result.folds.append(_proven(found))
    except FoldError as error:
        for inner in found.instead:
            _fold(inner, result)
        if not found.instead:
            result.left.append(_left(found.name, found.block, str(error)))


def _proven(found: _Found) -> Folded:
    """Return the fold of a block: as it is declared, else by its own method.

    Raises:
        FoldError: neither computes the same; the message is the declaration's, if there is one.
    """
    block, kind = found.block, found.kind
    if isinstance(kind, OwnFold):
        kind.check()
        return Folded(found.name, block, kind.commit_, kind.note)
    try:
        prepared = proven(block, kind)
    except FoldError as error:
        try:
            own = OwnFold(block)
            own.check()
        except FoldError:
            raise error from None
        if not own.changes:
            raise
        return Folded(found.name, block, own.commit_, own.note)
    return Folded(found.name, block, lambda: kind.commit_(block, prepared))


def _left(name: str, block: nn.Module, reason: str) -> str:
    where = f"{name}: {type(block).__name__}" if name else type(block).__name__
    return f"{where} is left as it is: {reason}"


def _found(path: str, module: nn.Module, seen: set[int]) -> Iterator[_Found]:
    """Yield each block with its path and its declaration, or its own fold if it has no declaration."""
    if id(module) in seen:
        return
    seen.add(id(module))
    kind = next((kind for kind in KINDS if kind.matches(module)), None)
    if kind is not None:
        yield _Found(path, module, kind)
        return
    children = ((f"{path}.{name}".lstrip("."), child) for name, child in module.named_children())
    inside = [found for name, child in children for found in _found(name, child, seen)]
    own = OwnFold(module) if own_methods(module) else None
    if own is None or not own.changes or (own.error and (inside or _is_deployed(module))):
        yield from inside
    elif not inside or _folds_more(module, path, own, inside):
        yield _Found(path, module, own, tuple(inside))
    else:
        yield from inside


def _folds_more(module: nn.Module, path: str, own: OwnFold, inside: list[_Found]) -> bool:
    """Return whether a module's own method folds more than the blocks inside the module, as VanillaNet's does."""
    copy = without_hooks(module)
    for found in inside:
        block = copy.get_submodule(found.name[len(path) :].lstrip("."))
        try:
            _proven(_Found(found.name, block, _kind_of(found, block))).commit_()
        except FoldError:
            return True
    return copy.state_dict().keys() != own.result.state_dict().keys()


def _kind_of(found: _Found, block: nn.Module) -> Kind | OwnFold:
    return OwnFold(block) if isinstance(found.kind, OwnFold) else found.kind


def _untried(model: nn.Module, passed: set[int]) -> Iterator[str]:
    """Yield a line for each class with a method that tells of branches, and that nothing here has tried to fold."""
    seen: dict[type, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if id(module) in passed or own_methods(module) or _is_known(module) or kind.__module__.startswith(OWN):
            continue
        if _telling(kind) and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
            seen.setdefault(kind, []).append((name, module))
    for kind, found in seen.items():
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        reason = f"it has a method {_telling(kind)}(), which yolorep does not know; fold it by that method first"
        yield _left(*found[0], reason + more)


OWN = ("torch.", "ultralytics.", "yolorep.")  # packages whose classes are known


def _telling(kind: type) -> str:
    """Return the name of a method that suggests that the class has branches; empty if there is none."""
    return next((name for name in sorted(dir(kind)) if TELLING.search(name) and callable(getattr(kind, name))), "")


def _is_known(module: nn.Module) -> bool:
    return any(type(module).__name__ in kind.names for kind in KINDS)


def _is_deployed(module: nn.Module) -> bool:
    return any(kind.deployed(module) for kind in BLOCKS)


def _check_evaluating(name: str, block: nn.Module, kind: Kind | OwnFold) -> None:
    layers = block.named_modules() if isinstance(kind, OwnFold) else folded_layers(block, kind)
    if any(isinstance(layer, _BatchNorm) and layer.training for _, layer in layers):
        raise FoldError(f"{type(block).__name__} is in training mode; call .eval() first", name)
