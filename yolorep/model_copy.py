"""Copy a host's model without what cannot be copied."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn

from yolorep.errors import HostError, first_line
from yolorep.host import unwrapped

Model = TypeVar("Model", bound=nn.Module)
RUNNERS = ("predictor", "trainer")  # attributes of ultralytics' `YOLO` that hold threads and data loaders


def copied(model: Model) -> Model:
    """Return a deep copy of a model.

    A `YOLO` of ultralytics keeps its predictor and its trainer, which hold what cannot be copied; the copy has its own
    network, and neither of the two.

    Raises:
        HostError: torch cannot copy a tensor of the model, such as a masked weight of pruning; the message names it.
    """
    core = unwrapped(model)
    if core is model or not hasattr(model, RUNNERS[0]):
        return _deep_copy(model)
    result = model.__new__(type(model))
    result.__dict__ = {**vars(model), **{name: None for name in RUNNERS if name in vars(model)}}
    result._modules = {**model._modules, "model": _deep_copy(core)}
    return result


def _deep_copy(model: Model) -> Model:
    try:
        return deepcopy(model)
    except RuntimeError as error:
        raise HostError(_reason(model, error)) from None


def _reason(model: nn.Module, error: RuntimeError) -> str:
    """Return a sentence that names the tensor that torch refuses to copy."""
    for name, layer in model.named_modules():
        computed = [key for key, value in vars(layer).items() if isinstance(value, Tensor) and not value.is_leaf]
        if not computed:
            continue
        where = f"{name}.{computed[0]}".lstrip(".")
        masked: Any = getattr(layer, f"{computed[0]}_mask", None)
        if masked is not None:
            cure = f"torch.nn.utils.prune.remove({name or 'model'}, {computed[0]!r})"
            return f"{where} is pruned with a mask; make the pruning permanent first, by {cure}"
        return f"{where} is computed from other tensors and cannot be copied; store its value first"
    return f"{type(model).__name__} cannot be copied: {first_line(error)}"
