"""Prove the fold of a declared block on noise: a folded copy must compute what the block computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from yolorep.errors import FoldError, first_line
from yolorep.foreign.declared_blocks import ForeignBlock
from yolorep.foreign.implicit_head import ImplicitHead
from yolorep.precision import has_values

Kind = ForeignBlock | ImplicitHead
TOLERANCE = 1e-9  # in float64, relative to the block's largest output


def proven(block: nn.Module, kind: Kind) -> Any:
    """Return what `kind` prepares for the block, which is not changed; a block without values (meta) is not checked.

    Raises:
        FoldError: the block does not fold, cannot be run, or would compute something else.
    """
    check_unhooked(folded_layers(block, kind))
    if not all(has_values(tensor) for tensor in block.state_dict().values()):
        return kind.prepare(block, kind.folds(block))
    try:
        copy = _exact_copy(block)
        kernels = kind.folds(copy)
        inputs = list(kind.inputs(copy, kernels))
        before = [run(kind, copy, x) for x in inputs]
        kind.commit_(copy, kind.prepare(copy, kernels))
        after = [run(kind, copy, x) for x in inputs]
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # of its own code, or of torch
        raise FoldError(f"it cannot be run: {first_line(error)}") from None
    difference = relative_error(before, after)
    if not difference <= TOLERANCE:
        raise FoldError(f"folded, it would compute something else (relative error {difference:.1e})")
    return kind.prepare(block, kernels)


def folded_layers(block: nn.Module, kind: Kind) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that the fold of a block removes, by name."""
    for name, layer in block.named_modules():
        if name.split(".")[0] in kind.gone:
            yield name, layer


def check_unhooked(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Check that no layer that a fold removes has forward hooks.

    Raises:
        FoldError: one has.
    """
    for name, layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise FoldError(f"{type(layer).__name__} has forward hooks, which would be lost", name)


@torch.no_grad()
def run(kind: Kind, block: nn.Module, x: Any) -> Any:
    """Return the block's outputs for a copy of `x`, which it may change."""
    return kind.run(block, deepcopy(x))


def relative_error(before: Any, after: Any) -> float:
    """The largest difference between two nests of tensors, relative to the largest value before.

    Infinite at a NaN, and where the two differ in number or shape.
    """
    outputs = _tensors(before), _tensors(after)
    if [a.shape for a in outputs[0]] != [b.shape for b in outputs[1]]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(*outputs, strict=True) if a.numel()]
    errors = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs]
    return max(errors) if errors and all(error == error for error in errors) else float("inf")


def without_hooks(block: nn.Module) -> nn.Module:
    """Return a copy without hooks, in eval mode.

    Raises:
        FoldError: torch cannot copy the block, for example because it keeps a tensor of the last step.
    """
    try:
        copy = deepcopy(block)
    except RuntimeError as error:
        raise FoldError(f"it cannot be copied: {first_line(error)}") from None
    for layer in copy.modules():
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()
    copy.eval()  # some projects' own `train` returns nothing
    return copy


def _exact_copy(block: nn.Module) -> nn.Module:
    """Return a copy in float64 on the CPU, which every machine supports."""
    return without_hooks(block).cpu().double()


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]
