"""`verify`: do two models compute the same function? Block by block on the same inputs, and end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.errors import VerifyError, first_line, out_of_memory
from yolorep.head_attributes import head_attributes
from yolorep.host import unwrapped
from yolorep.model_outputs import leaves
from yolorep.numerics import (
    TOLERANCE,
    channel_error,
    full_float32,
    largest_difference,
    relative_error,
    rounding_allowance,
    tolerance,
)
from yolorep.precision import has_values
from yolorep.stock_layers import rep_blocks
from yolorep.verification_report import END_TO_END, Report, Row

__all__ = ["END_TO_END", "Report", "Row", "example_input", "stored_dtype", "verify", "verify_as_stored"]

LEAST_SIDE = 64  # pixels of the default input; a network of stride 32 ends with 2 x 2
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


@torch.no_grad()
def verify(
    before: nn.Module, after: nn.Module, x: Tensor | None = None, *, dtype: torch.dtype = torch.float64
) -> Report:
    """Compare two models in evaluation mode: each rep block with its counterpart on the same input, then the outputs.

    Copies of both are run in `dtype`; the models are left as they were. By default they are run in float64 and judged
    by the precision that `after` stores its values in: the errors are then what rounding the folded values does, and
    not the order in which a deep float32 network adds. Errors are relative. Each output, and each channel of it, is
    judged by its own largest value (see `yolorep.numerics`).

    before, after: models of the same structure. Rep blocks of either are compared one by one; without any, the outputs
        alone are. Of a compiled model, or of ultralytics' `YOLO`, the model inside is compared.
    x: input, (batch, channels, height, width), floating point; by default two images of noise of a size that suits the
        strides.
    dtype: the arithmetic. float32 is computed in full, without TF32 and autocast.

    Returns:
        A report that prints as a table; `ok`, `max_abs`, `max_rel` and one row for each block, the last end to end.

    Raises:
        VerifyError: the outputs differ in structure, a block has no counterpart that takes its input, an input that
            the models do not take, a model that cannot be copied, or not enough memory.

    Example:
        >>> import torch, yolorep
        >>> model = torch.nn.Sequential(yolorep.Conv_C3(3, 8), yolorep.Conv_C3(8, 8)).eval()
        >>> yolorep.verify(model, yolorep.deploy(model)).ok
        True
    """
    models = unwrapped(before), unwrapped(after)
    stored = stored_dtype(models[1])
    known = [TOLERANCE.get(dtype), TOLERANCE.get(stored)]
    return _compared(*models, x, dtype, stored, None if None in known else max(known))  # type: ignore[type-var]


@torch.no_grad()
def verify_as_stored(before: nn.Module, after: nn.Module, stored: torch.dtype) -> Report:
    """`verify`, judged by the precision that `after` was stored in before it was widened; float16 is judged too.

    A checkpoint that is loaded as float32 does not show that its values were rounded to float16.

    Raises:
        VerifyError: as `verify`.
    """
    return _compared(unwrapped(before), unwrapped(after), None, torch.float64, stored, tolerance(stored))


def _compared(
    before: nn.Module,
    after: nn.Module,
    x: Tensor | None,
    dtype: torch.dtype,
    stored: torch.dtype,
    tolerance: float | None,
) -> Report:
    if x is not None:
        _check_input(x, images=any(isinstance(m, nn.Conv2d) for m in before.modules()))
    device = _device(before)
    a, b = _copy(before, "before", dtype, device), _copy(after, "after", dtype, device)
    x = (example_input(a) if x is None else x.detach()).to(device=device, dtype=dtype)
    with full_float32(), torch.autocast(device.type, enabled=False):
        run = _Comparison(a, b, tolerance, stored)
        run.compare(x)
    differences = (*run.differences, *head_attributes(a, b))
    return Report(tuple(run.rows), dtype, tolerance, tuple(dict.fromkeys(differences)))


def example_input(model: nn.Module) -> Tensor:
    """Noise in [0, 1), the same each time: (2, channels, side, side) on the model's device and in its dtype.

    A classifier of ultralytics has stride 1, and on a map of one pixel only the middle of a kernel would be seen.

    Raises:
        VerifyError: the model has no Conv2d to tell the number of channels from.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise VerifyError(f"{type(model).__name__} has no convolution to tell the input's channels from; pass x")
    stride = getattr(model, "stride", None)
    side = max(LEAST_SIDE, 4 * int(stride.max())) if isinstance(stride, Tensor) and stride.numel() else LEAST_SIDE
    yaml = getattr(model, "yaml", None)
    channels = yaml.get("ch") if isinstance(yaml, dict) else None  # YOLOv5 v5.0 slices the image before it convolves
    noise = torch.rand(2, channels or first.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    return noise.to(first.weight)


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The precision of a model's values: its narrowest floating-point dtype, float32 where float64 holds such values.

    A model that was rounded to float32 and widened again (`model.double()`) is accurate to float32.
    """
    values = [p.detach() for p in model.parameters() if p.is_floating_point()]
    if not values:
        return torch.float64
    narrowest = min((value.dtype for value in values), key=lambda dtype: torch.finfo(dtype).bits)
    if narrowest == torch.float64 and all(bool((value == value.float()).all()) for value in values):
        return torch.float32
    return narrowest


def _check_input(x: Tensor, *, images: bool) -> None:
    accepted = "accepted: floating-point values, (batch, channels, height, width)"
    if not isinstance(x, Tensor):
        raise VerifyError(f"x is a {type(x).__name__}, not a tensor; {accepted}")
    if not x.is_floating_point():
        raise VerifyError(f"x holds {str(x.dtype).removeprefix('torch.')} values; {accepted}, such as x.float() / 255")
    if images and x.dim() != 4:
        raise VerifyError(f"x has {x.dim()} axes, {tuple(x.shape)}; {accepted}")
    if not x.numel():
        raise VerifyError(f"x is empty, {tuple(x.shape)}; {accepted}")
    if not bool(torch.isfinite(x).all()):
        raise VerifyError(f"x holds values that are not finite; {accepted}")


def _device(model: nn.Module) -> torch.device:
    first = next((tensor for tensor in (*model.parameters(), *model.buffers())), None)
    device = torch.device("cpu") if first is None else first.device
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64


def _copy(model: nn.Module, side: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A copy in evaluation mode whose head returns all candidates.

    Raises:
        VerifyError: the model has no values, cannot be copied, or memory is too small for a copy.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not all(has_values(tensor) for tensor in tensors):
        raise VerifyError(f"the model {side} has no values (it is on the meta device); nothing can be compared")
    # Pruning and old weight norms keep the tensor of the last step, which torch does not copy.
    kept = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    try:
        copy = deepcopy(model, memo).to(device=device, dtype=dtype)
    except Exception as error:
        if out_of_memory(error):
            raise VerifyError(f"out of memory while the model {side} was copied to {dtype}") from None
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise VerifyError(f"the model {side} cannot be copied: {reason}") from None
    copy.eval()
    for head in copy.modules():
        # Heads that return the best few boxes alone return all: rounding swaps two of nearly the same score.
        if callable(getattr(head, "postprocess", None)):
            head.__dict__["postprocess"] = lambda *answers: answers
    return copy


@dataclass
class _Comparison:
    """Two models in the same dtype, and what was found of them so far."""

    before: nn.Module
    after: nn.Module
    tolerance: float | None
    stored: torch.dtype
    rows: list[Row] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    _perturbed: nn.Module | None = None

    def compare(self, x: Tensor) -> None:
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
        """Compare a block that the model does not run, an auxiliary head's for one, on noise of its own."""
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
        """The floating-point tensors of two outputs; what else they hold is compared here."""
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
    """What must be equal for two leaves to be compared: a tensor's shape and sort, a plain value's type."""
    if isinstance(value, Tensor):
        sort = "floating" if value.is_floating_point() else "complex" if value.is_complex() else str(value.dtype)
        return tuple(value.shape), sort
    return type(value).__name__


def _described(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """The first few leaves in which two structures differ."""
    paths = [path for path in (*expected, *got) if expected.get(path) != got.get(path)]
    told = []
    for path in list(dict.fromkeys(paths))[:3]:
        sides = (found.get(path, "nothing") for found in (expected, got))
        told.append(f"output{path}: {' and '.join(str(s[0]) if isinstance(s, tuple) else s for s in sides)}")
    return "; ".join(told)
