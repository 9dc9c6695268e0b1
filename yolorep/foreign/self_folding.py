"""Fold blocks without a declaration by their own method, if the result is equal on noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolorep.errors import FoldError, first_line
from yolorep.foreign.proof import check_unhooked, relative_error, without_hooks

# In place, without arguments, and not called by the host's own `fuse()`, which would call some of them twice.
METHODS = ("switch_to_deploy", "reparameterize")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
BATCH, SIDE = 2, 17


def own_method(block: nn.Module) -> str | None:
    """Return the name of a block's folding method, if it has one."""
    return next((name for name in METHODS if callable(getattr(type(block), name, None))), None)


class OwnFold:
    """The fold of a block by its own method, which is called on a copy for the check and then on the block."""

    def __init__(self, block: nn.Module) -> None:
        self.block = self.copy = block
        self.error: FoldError | None = None
        try:
            self.copy = without_hooks(block)
            _fold_itself_(self.copy)
        except FoldError as error:
            self.error = error

    @property
    def changes(self) -> bool:
        """Whether the method changes anything; a method that fails counts as one that would."""
        return self.error is not None or self.copy.state_dict().keys() != self.block.state_dict().keys()

    @torch.no_grad()
    def check(self) -> None:
        """Check that the folded copy computes what the block computes.

        Raises:
            FoldError: the method fails, changes the function, or would drop hooks.
        """
        if self.error is not None:
            raise self.error
        check_unhooked(self.block.named_modules())
        reference = next(self.block.parameters(), None)
        if reference is None:
            raise FoldError("it has no parameters")
        random = torch.Generator().manual_seed(0)
        noise = torch.randn(BATCH, _channels(self.block), SIDE, SIDE, generator=random).to(reference)
        outputs = [_output(block, noise) for block in (without_hooks(self.block), self.copy)]
        error, tolerance = relative_error(*outputs), TOLERANCE.get(reference.dtype, 0.0)
        if not error <= tolerance:
            raise FoldError(f"folded by its own {own_method(self.block)}(), it computes something else ({error:.1e})")

    def commit_(self) -> None:
        _fold_itself_(self.block)


@torch.no_grad()
def _fold_itself_(block: nn.Module) -> None:
    """Call the block's own method. Raises FoldError: the method fails."""
    method = own_method(block)
    try:
        getattr(block, str(method))()
    except Exception as error:  # anyone's code
        raise FoldError(f"its own {method}() fails: {first_line(error)}") from None


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
