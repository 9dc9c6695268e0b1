"""Run two models of one structure on the same inputs and collect how far their blocks and outputs differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.errors import VerifyError, first_line, out_of_memory
from yolorep.model_outputs import leaves
from yolorep.numerics import channel_error, largest_difference, relative_error, rounding_allowance
from yolorep.stock_layers import rep_blocks
from yolorep.verification_report import END_TO_END, Row

UNCALLED_SIDE = 17  # pixels of the noise for a block that the model does not call
# What layers and hosts raise for an input of another shape.
REFUSALS = (
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


@dataclass
class Comparison:
    """Two models in the same dtype, and the differences found so far.

    tolerance: largest relative error accepted, None to report without judging. stored: precision of the values of
    `after`. rows: one for each block and one end to end. differences: sentences on outputs that are no floating-point
    tensors.
    """

    before: nn.Module
    after: nn.Module
    tolerance: float | None
    stored: torch.dtype
    rows: list[Row] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    _perturbed: nn.Module | None = None

    def compare(self, x: Tensor) -> None:
        """Run both on `x`: each rep block on the input that it gets in `before`, then the whole models."""
        names = sorted({*rep_blocks(self.before), *rep_blocks(self.after)} - {""})
        with ExitStack() as hooks:
            for name in names:
                layer = _layer(self.before, name, other=self.after)
                _layer(self.after, name, other=self.before)
                hook = layer.register_forward_hook(self._hook(name), with_kwargs=True)
                hooks.callback(hook.remove)
            expected = _called(END_TO_END, self.before, x)
        called = {row.name for row in self.rows}
        for name in names:
            if name not in called:
                self._uncalled(name, x)
        self._row(END_TO_END, expected, _called(END_TO_END, self.after, x), lambda model: model(x))

    def _hook(self, name: str) -> Callable[..., None]:
        def compare(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            got = _called(name, self.after.get_submodule(name), *inputs, **keywords)
            self._row(name, output, got, lambda model: model.get_submodule(name)(*inputs, **keywords))

        return compare

    def _uncalled(self, name: str, x: Tensor) -> None:
        """Compare a block that the model does not run, such as an auxiliary head's, on separate noise."""
        layers = [model.get_submodule(name) for model in (self.before, self.after)]
        first = next((m for layer in layers for m in layer.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None:
            raise VerifyError(f"{name} is not run by the model, and has no convolution to tell its input from")
        noise = torch.rand(
            2, first.in_channels, UNCALLED_SIDE, UNCALLED_SIDE, generator=torch.Generator().manual_seed(0)
        ).to(x)
        a, b = (_called(name, layer, noise) for layer in layers)
        self._row(f"{name} (not run by the model)", a, b, lambda model: model.get_submodule(name)(noise))

    def _row(self, name: str, expected: Any, got: Any, again: Callable[[nn.Module], Any]) -> None:
        """Compare two outputs. again: calls the same layer of another copy of the model `after`.

        Raises:
            VerifyError: the outputs differ in structure, or hold no values.
        """
        pairs = list(self._paired(name, leaves(expected), leaves(got)))
        worst = max((largest_difference(a, b) for _, a, b in pairs), default=0.0)
        row = Row(name, worst, max((channel_error(a, b) for _, a, b in pairs), default=0.0))
        if self.tolerance is not None and self.tolerance < row.max_rel < float("inf"):
            perturbed = leaves(again(self._with_rounded_weights()))
            judged = (
                channel_error(a, b, allowed=rounding_allowance(b, perturbed[path], self.tolerance))
                for path, a, b in pairs
            )
            row = Row(name, row.max_abs, row.max_rel, beyond_rounding=max(judged))
        self.rows.append(row)

    def _paired(self, name: str, expected: dict[str, Any], got: dict[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the floating-point tensors of two outputs in pairs; compare all other values here."""
        shapes = [{path: _kind(value) for path, value in found.items()} for found in (expected, got)]
        if shapes[0] != shapes[1]:
            raise VerifyError(f"{name}: the models have different outputs: {_described(*shapes)}")
        judged = 0
        for path, a in expected.items():
            b = got[path]
            if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()):
                judged += a.numel()
                yield path, a, b.to(a.device)
            elif isinstance(a, Tensor):
                judged += a.numel()
                unequal = int((a != b.to(a.device)).sum())
                if unequal:
                    self.differences.append(f"{name}: output{path}: {unequal} of {a.numel()} values differ")
            elif isinstance(a, float):
                if not relative_error(torch.tensor(a), torch.tensor(b)) <= (self.tolerance or 0.0):
                    self.differences.append(f"{name}: output{path}: {a} and {b}")
            elif a != b:
                self.differences.append(f"{name}: output{path}: {a!r} and {b!r}")
        if not judged:
            raise VerifyError(f"{name}: the outputs hold no tensor with values; nothing can be compared")

    def _with_rounded_weights(self) -> nn.Module:
        """A copy of `after` each of whose values is changed by up to half a unit in the last place that it stores."""
        if self._perturbed is None:
            self._perturbed = deepcopy(self.after)
            random = torch.Generator().manual_seed(1)
            half = torch.finfo(self.stored).eps / 2
            for tensor in (*self._perturbed.parameters(), *self._perturbed.buffers()):
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=random, dtype=torch.float64) * 2 - 1
                    tensor.mul_((1 + half * noise).to(tensor))
        return self._perturbed


def _layer(model: nn.Module, name: str, other: nn.Module) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        kinds = f"{type(model).__name__} has no layer {name}, {type(other).__name__} has"
        raise VerifyError(f"{kinds}: the models differ in structure") from None


def _called(name: str, module: nn.Module, *inputs: Any, **keywords: Any) -> Any:
    try:
        return module(*inputs, **keywords)
    except VerifyError:
        raise
    except REFUSALS as error:
        if out_of_memory(error):
            raise VerifyError(f"{name}: out of memory; pass a smaller x, or use a machine with more") from None
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        raise VerifyError(
            f"{name}: {type(module).__name__} does not take an input of shape {shapes}, or the models differ in "
            f"structure: {first_line(error)}"
        ) from None


def _kind(value: Any) -> Any:
    """Return the properties that two leaves must share: a tensor's shape and kind, or a plain value's type."""
    if isinstance(value, Tensor):
        sort = "floating" if value.is_floating_point() else "complex" if value.is_complex() else str(value.dtype)
        return tuple(value.shape), sort
    return type(value).__name__


def _described(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """The first few leaves in which two structures differ."""
    paths = [path for path in (*expected, *got) if expected.get(path) != got.get(path)]
    lines = []
    for path in list(dict.fromkeys(paths))[:3]:
        sides = (found.get(path, "nothing") for found in (expected, got))
        lines.append(f"output{path}: {' and '.join(str(s[0]) if isinstance(s, tuple) else s for s in sides)}")
    return "; ".join(lines)
