"""Find the rep blocks whose weights are read outside their own forward: to fold them would change the function."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from yolorep.modes import evaluating
from yolorep.precision import has_values

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
SIDE = 64  # pixels of the noise that the model is run on


def read_outside(model: nn.Module, blocks: Iterable[nn.Module]) -> dict[nn.Module, bool]:
    """Return the blocks of `model` whose tensors other code computes with, and whether each of them is called as well.

    The model is run once, in eval mode and without its hooks, on an image of noise. If the model cannot
    be run that way, the result is empty; `yolorep.verify` still finds such a fault.

    Example:
        >>> from yolorep import Conv_C3
        >>> class Twice(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.block = Conv_C3(4, 4)
        ...     def forward(self, x):
        ...         return self.block(x) + nn.functional.conv2d(x, self.block.conv.weight, padding=1)
        >>> model = Twice()
        >>> list(read_outside(model, [model.block]).values())
        [True]
    """
    blocks = [block for block in blocks if block is not model]
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if not blocks or first is None or not _can_run(model):
        return {}
    weight = first.weight
    noise = torch.rand(1, first.in_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(weight)
    readers = _Readers(blocks)
    with evaluating(model), torch.no_grad(), _attributes_kept(model), readers.watching():
        try:
            model(noise)
        except Exception:  # anyone's forward, on an input that may not be its own
            return {}
    return {block: block in readers.called for block in blocks if block in readers.read}


class _Readers(TorchFunctionMode):
    """Records which blocks' tensors take part in a computation while the block itself is not running."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = blocks
        self.owners = {id(tensor): block for block in blocks for tensor in (*block.parameters(), *block.buffers())}
        self.running: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.read: set[nn.Module] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # a shape or a device is no computation
            for leaf in tree_leaves((args, kwargs)):
                owner = self.owners.get(id(leaf))
                if owner is not None and owner not in self.running:
                    self.read.add(owner)
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record for the duration of the block. The hooks go with the attributes that `_attributes_kept` restores."""
        for block in self.blocks:
            block.register_forward_pre_hook(lambda module, _: self._enter(module))
            block.register_forward_hook(lambda *_: self._leave(), always_call=True)
        with self:
            yield

    def _enter(self, block: nn.Module) -> None:
        self.called.add(block)
        self.running.append(block)

    def _leave(self) -> None:
        self.running.pop()


def _can_run(model: nn.Module) -> bool:
    """Return whether the model has values, and no layer that would be compiled when it is called."""
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    return not compiled and all(has_values(tensor) for tensor in (*model.parameters(), *model.buffers()))


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Remove all forward hooks for the duration of the block, and restore all attributes of all modules after it.

    A head stores the grid of the last image in attributes; that of YOLOv5 in lists, which it changes in place.
    """
    kept = [(module, dict(vars(module))) for module in model.modules()]
    lists = [(value, list(value)) for _, attributes in kept for value in attributes.values() if type(value) is list]
    try:
        for module in model.modules():
            for name in HOOKS:
                setattr(module, name, OrderedDict())
        yield
    finally:
        for module, attributes in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for value, content in lists:
            value[:] = content
