"""Fold blocks without a declaration by their own method, if the result is equal on noise."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.errors import FoldError, first_line
from yolorep.foreign.proof import check_unhooked, relative_error, without_hooks
from yolorep.host import HOSTS

# Methods that fold a block in place, in the order in which they are tried. A host's `fuse()` calls none of them.
METHODS = (
    "switch_to_deploy",
    "reparameterize",
    "convert_to_deploy",  # RT-DETR, D-FINE, PaddleDetection
    "fuse_block_residual_branches",  # super-gradients
    "prep_model_for_conversion",  # super-gradients
    "merge_dilated_branches",  # UniRepLKNet
    "merge_kernel",  # RepLKNet
    "fuse_repvgg_block",  # YOLOv7
    "fuse_reparam",
    "structural_reparam",
)
FUSE = "fuse"  # counts as a fold only if it returns another layer, as in RepViT; a host calls an in-place `fuse` itself
ATTACHED = ("i", "f", "type", "np")  # by a host that builds a model from a YAML
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
BATCH, SIDE = 2, 17


def own_methods(block: nn.Module) -> list[str]:
    """Return the names of the methods with which a block may fold itself, in the order in which they are tried."""
    names = [name for name in METHODS if _callable_alone(block, name)]
    return [*names, FUSE] if _callable_alone(block, FUSE) and _may_fuse(block) else names


class OwnFold:
    """The fold of a block by its own method, which is called on a copy for the check and then on the block.

    method: the first of the block's methods that changes it, or that fails.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = self.result = block
        self.method = ""
        self.error: FoldError | None = None
        for method in own_methods(block):
            try:
                self.method, self.result = method, _folded_by(method, without_hooks(block))
            except FoldError as error:
                self.error = self.error or error
            if self.changes:
                break

    @property
    def changes(self) -> bool:
        """Whether the method changes anything; a method that fails counts as one that would."""
        if self.error is not None:
            return True
        if self.method == FUSE:
            return type(self.result) is not type(self.block)
        return self.result.state_dict().keys() != self.block.state_dict().keys()

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
        outputs = [_output(block, noise) for block in (without_hooks(self.block), self.result)]
        error, tolerance = relative_error(*outputs), TOLERANCE.get(reference.dtype, 0.0)
        if not error <= tolerance:
            raise FoldError(f"folded by its own {self.method}(), it computes something else ({error:.1e})")

    @property
    def note(self) -> str:
        """What the method leaves in the block that is no longer run; empty if nothing."""
        gone = self.block.state_dict().keys() - self.result.state_dict().keys()
        if gone or self.method == FUSE:
            return ""
        return f"its own {self.method}() keeps the branches beside the folded layer, as its project does"

    def commit_(self) -> None:
        """Fold the block itself, in the same object."""
        result = _folded_by(self.method, self.block)
        if result is not self.block:
            attached = {name: value for name, value in vars(self.block).items() if name in ATTACHED}
            self.block.__class__ = type(result)
            self.block.__dict__ = {**vars(result), **attached}


@torch.no_grad()
def _folded_by(method: str, block: nn.Module) -> nn.Module:
    """Call a block's own method; return the block, or the layer that the method returns in place of the block.

    Raises:
        FoldError: the method fails, or it is `fuse` and folds the block in place.
    """
    convs = _convolutions(block)
    try:
        result = getattr(block, method)()
    except Exception as error:  # anyone's code
        raise FoldError(f"its own {method}() fails: {first_line(error)}") from None
    if method != FUSE:
        return block
    if isinstance(result, nn.Module) and result is not block:
        return result.train(block.training)
    if _convolutions(block) < convs:
        raise FoldError(f"its own {FUSE}() folds it in place, which is left to its project's code")
    return block


def _callable_alone(block: nn.Module, name: str) -> bool:
    """Return whether the class of a block has a method that takes no argument."""
    method = getattr(type(block), name, None)
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(block)
    except (TypeError, ValueError):
        return False
    return True


def _may_fuse(block: nn.Module) -> bool:
    """Return whether `fuse()` of a block may fold branches, and is not called by a host's own `fuse()`."""
    modules = {kind.__module__ for kind in type(block).__mro__}
    if any(module.startswith("ultralytics.") for module in modules) or any(
        modules & host.model_modules for host in HOSTS
    ):
        return False
    convs = _convolutions(block)
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    wraps = any(hasattr(type(child), FUSE) for child in block.children())
    return convs > 0 and (convs > 1 or len(norms) > 1 or wraps)


def _convolutions(block: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in block.modules())


def _output(block: nn.Module, x: torch.Tensor) -> Any:
    try:
        return block(x.clone())
    except Exception as error:  # anyone's code
        raise FoldError(f"it cannot be run on an image: {first_line(error)}") from None


def _channels(block: nn.Module) -> int:
    """Return the number of input channels: those of the first convolution, else of the first batch norm."""
    for kind, channels in ((nn.Conv2d, "in_channels"), (_BatchNorm, "num_features")):
        for module in block.modules():
            if isinstance(module, kind):
                return int(getattr(module, channels))
    raise FoldError("it has no convolution or batch norm to tell its input's channels from")
