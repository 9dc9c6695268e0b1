"""Blocks that no declaration knows, folded by their own method, if what that does is the same on noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolorep.errors import FoldError, first_line
from yolorep.foreign.proof import relative_error, without_hooks

# In place, without arguments, and not called by the host's own `fuse()`, which would call some of them twice.
METHODS = ("switch_to_deploy", "reparameterize")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
BATCH, SIDE = 2, 17


def own_method(block: nn.Module) -> str | None:
    """The name of the method by which a block folds itself, if it has one."""
    return next((name for name in METHODS if callable(getattr(type(block), name, None))), None)


def still_folds(block: nn.Module) -> bool:
    """Whether the block's own method changes anything; a method that fails is taken to be one that would.

    It is tried on a copy.
    """
    copy = without_hooks(block)
    try:
        fold_itself_(copy)
    except FoldError:
        return True
    return copy.state_dict().keys() != block.state_dict().keys()


@torch.no_grad()
def fold_itself_(block: nn.Module) -> None:
    """Call the block's own method. Raises FoldError: the method fails."""
    method = own_method(block)
    try:
        getattr(block, str(method))()
    except Exception as error:  # anyone's code
        raise FoldError(f"its own {method}() fails: {first_line(error)}") from None


@torch.no_grad()
def check_own_fold(block: nn.Module) -> None:
    """Raises:
    FoldError: the block's own method fails on a copy, or makes it compute something else.
    """
    copy = without_hooks(block)
    reference = next(block.parameters(), None)
    if reference is None:
        raise FoldError("it has no parameters")
    noise = torch.randn(BATCH, _channels(block), SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(reference)
    before = _output(copy, noise)
    fold_itself_(copy)
    error, tolerance = relative_error(before, _output(copy, noise)), TOLERANCE.get(reference.dtype, 0.0)
    if not error <= tolerance:
        raise FoldError(f"folded by its own {own_method(block)}(), it computes something else ({error:.1e})")


def _output(block: nn.Module, x: torch.Tensor) -> Any:
    try:
        return block(x.clone())
    except Exception as error:  # anyone's code
        raise FoldError(f"it cannot be run on an image: {first_line(error)}") from None


def _channels(block: nn.Module) -> int:
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise FoldError("it has no convolution to tell its input's channels from")
