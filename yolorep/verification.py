"""`verify`: do two models compute the same function? Block by block on the same inputs, and end to end."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.comparison import Comparison
from yolorep.errors import VerifyError, first_line, out_of_memory
from yolorep.head_attributes import head_attributes
from yolorep.host import unwrapped
from yolorep.numerics import (
    TOLERANCE,
    full_float32,
    tolerance,
)
from yolorep.precision import has_values
from yolorep.verification_report import END_TO_END, Report, Row

__all__ = ["END_TO_END", "Report", "Row", "example_input", "stored_dtype", "verify", "verify_as_stored"]

LEAST_SIDE = 64  # pixels of the default input; a network of stride 32 ends with 2 x 2


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
        run = Comparison(a, b, tolerance, stored)
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
