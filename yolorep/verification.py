"""`verify`: do two models compute the same? Block by block on the same inputs, and end to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from io import StringIO
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from yolorep.errors import VerifyError, first_line
from yolorep.host import unwrapped
from yolorep.modes import evaluating
from yolorep.stock_layers import rep_blocks

# Largest error relative to the largest output. Narrower types are reported, not judged.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
END_TO_END = "end to end"
LEAST_SIDE = 64  # pixels of the input by default; a network of stride 32 ends with 2 x 2


@dataclass(frozen=True)
class Row:
    """Errors of one block, or of the model end to end. max_rel is relative to the largest output before."""

    name: str
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Report:
    """What `verify` found: one row a block, the last end to end.

    dtype: the arithmetic in which both models were run. tolerance: None where errors are only reported.
    """

    rows: tuple[Row, ...]
    dtype: torch.dtype
    tolerance: float | None

    @property
    def max_abs(self) -> float:
        return max(row.max_abs for row in self.rows)

    @property
    def max_rel(self) -> float:
        return max(row.max_rel for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether every error is finite and, where the dtype has a tolerance, within it."""
        return all(self.passes(row) for row in self.rows)

    def passes(self, row: Row) -> bool:
        return isfinite(row.max_abs) and (self.tolerance is None or row.max_rel <= self.tolerance)

    def __rich__(self) -> Any:
        from rich.table import Table

        judged = "reported only" if self.tolerance is None else f"tolerance {self.tolerance:g} relative"
        arithmetic = str(self.dtype).removeprefix("torch.")
        table = Table(title=f"{len(self.rows) - 1} blocks, {arithmetic} arithmetic, {judged}")
        table.add_column("layer", overflow="fold")
        for column in ("max abs", "max relative", ""):
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(row.name, f"{row.max_abs:.2e}", f"{row.max_rel:.2e}", "ok" if self.passes(row) else "FAILS")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=100).print(self)
        return text.getvalue()


def verify(before: nn.Module, after: nn.Module, x: Tensor | None = None) -> Report:
    """Compare two models in evaluation mode: each rep block with its counterpart on the same input, then the outputs.

    before, after: models of the same structure, one of which has rep blocks (or neither: then end to end alone). Of a
        compiled model, or of ultralytics' `YOLO`, the model inside is compared.
    x: input, (batch, channels, height, width); by default two images of noise of a size that suits the strides.
    Both models are left as they were.

    Raises:
        VerifyError: outputs differ in number or shape, or a block has no counterpart that takes its input.

    Example:
        >>> from yolorep import Conv_C3, deploy
        >>> block = Conv_C3(4, 4).eval()
        >>> verify(block, deploy(block)).ok
        True
    """
    before, after = unwrapped(before), unwrapped(after)
    x = example_input(before) if x is None else x
    names = sorted({*rep_blocks(before), *rep_blocks(after)} - {""})
    rows: list[Row] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for model in (before, after):
            stack.enter_context(evaluating(model))
        stack.enter_context(_unranked(before, after))
        with ExitStack() as hooks:
            for name in names:
                hook = _comparison(name, _counterpart(after, name), rows)
                hooks.callback(_counterpart(before, name).register_forward_hook(hook).remove)
            expected = before(x)
        rows.append(_row(END_TO_END, expected, _called(END_TO_END, after, x)))
    return Report(tuple(rows), x.dtype, TOLERANCE.get(x.dtype))


def verify_stored(before: nn.Module, after: nn.Module) -> Report:
    """Compare the values that two models store: copies of both are run in float64, and judged by what `after` stores.

    In float32 the end-to-end error of a deep model is mostly that of two orders of evaluation. In float64 arithmetic
    it is what rounding the folded values to the dtype of `after` does, and nothing else.

    Raises:
        VerifyError: as `verify`.
    """
    stored = next(after.parameters()).dtype
    report = verify(deepcopy(before).double(), deepcopy(after).double())
    return replace(report, tolerance=TOLERANCE.get(stored))


def example_input(model: nn.Module) -> Tensor:
    """Noise in [0, 1), the same each time: (2, channels, side, side) on the model's device and in its dtype.

    A classifier of ultralytics has stride 1, and on a map of one pixel only the middle of a kernel would be seen.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise VerifyError(f"{type(model).__name__} has no convolution to tell the input's channels from; pass x")
    stride = getattr(model, "stride", None)
    side = max(LEAST_SIDE, 4 * int(stride.max())) if isinstance(stride, Tensor) else LEAST_SIDE
    yaml = getattr(model, "yaml", None)
    channels = yaml.get("ch") if isinstance(yaml, dict) else None  # YOLOv5 v5.0 slices the image before it convolves
    noise = torch.rand(2, channels or first.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    return noise.to(first.weight)


@contextmanager
def _unranked(*models: nn.Module) -> Iterator[None]:
    """Heads that answer with the best few boxes alone give them all: rounding swaps two of nearly the same score."""
    heads = {m for model in models for m in model.modules() if callable(getattr(m, "postprocess", None))}
    own = {head: head.__dict__.get("postprocess") for head in heads}  # none but where somebody has put one
    for head in heads:
        head.__dict__["postprocess"] = lambda *answers: answers
    try:
        yield
    finally:
        for head, method in own.items():
            del head.__dict__["postprocess"]
            if method is not None:
                head.__dict__["postprocess"] = method


def _counterpart(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise VerifyError(f"{type(model).__name__} has no layer {name}: the models differ in structure") from None


def _comparison(name: str, counterpart: nn.Module, rows: list[Row]) -> Any:
    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        got = output if counterpart is module else _called(name, counterpart, *inputs)
        rows.append(_row(name, output, got))

    return compare


def _called(name: str, module: nn.Module, *inputs: Tensor) -> Any:
    try:
        return module(*inputs)
    except (RuntimeError, TypeError) as error:  # what torch raises for an input of another shape, or for several
        raise VerifyError(f"{name}: the models differ in structure: {first_line(error)}") from None


def _row(name: str, expected: Any, got: Any) -> Row:
    """Raises:
    VerifyError: the outputs differ in number or shape.
    """
    outputs = _tensors(expected), _tensors(got)
    shapes = [[tuple(t.shape) for t in output] for output in outputs]
    if shapes[0] != shapes[1]:
        raise VerifyError(f"{name}: the models have different outputs: {shapes[0]} and {shapes[1]}")
    worst_abs, worst_rel = 0.0, 0.0
    for a, b in zip(*outputs, strict=True):
        error = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        largest = float(a.double().abs().max()) if a.numel() else 0.0
        relative = error / largest if largest else error
        # Not max(): it would lose a NaN.
        worst_abs = error if not error <= worst_abs else worst_abs
        worst_rel = relative if not relative <= worst_rel else worst_rel
    return Row(name, worst_abs, worst_rel)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(output) if leaf.is_floating_point()]


def _leaves(output: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
