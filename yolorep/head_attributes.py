"""Attributes of a detection model that decide what its outputs mean, and that the outputs do not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolorep.model_outputs import leaves
from yolorep.numerics import relative_error

# Of the model and of its last layer, in either host. A deployed model must keep them all: NMS and scaling use them.
NAMES = (
    "stride", "strides", "anchors", "anchor_grid", "nc", "nl", "na", "no", "nm", "npr", "nk", "kpt_shape", "reg_max",
    "names", "end2end", "max_det",
)  # fmt: skip
TOLERANCE = 1e-6  # relative; strides and anchors are small numbers that a host may keep in half


def head_attributes(before: nn.Module, after: nn.Module) -> list[str]:
    """Return a sentence for each attribute of the model or of its last layer in which two models differ.

    Compare after both have run on one input: hosts keep the anchors and strides of the last input.
    """
    result = []
    for where, a, b in (("model", before, after), ("the head", _head(before), _head(after))):
        for name in NAMES:
            values = getattr(a, name, None), getattr(b, name, None)
            if not _same(*values):
                result.append(f"{name} of {where} differs: {' and '.join(map(_told, values))}")
    return result


def _head(model: nn.Module) -> Any:
    layers: Any = getattr(model, "model", None)
    return layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else None


def _same(a: Any, b: Any) -> bool:
    parts = leaves(_plain(a)), leaves(_plain(b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):  # a host's older models keep lists of numbers
        parts = {"": _tensor(a)}, {"": _tensor(b)}
    return parts[0].keys() == parts[1].keys() and all(
        _same_leaf(value, parts[1][path]) for path, value in parts[0].items()
    )


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return relative_error(a.cpu(), b.cpu()) <= TOLERANCE
    return type(a) is type(b) and a == b  # type: ignore[no-any-return]


def _tensor(value: Any) -> Any:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def _plain(value: Any) -> Any:
    """Class names as a mapping, sequences as lists: hosts and checkpoints of several ages write either."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_plain(part) for part in value]
        return dict(enumerate(parts)) if parts and all(isinstance(part, str) for part in parts) else parts
    return value


def _told(value: Any) -> str:
    text = str(value.flatten().tolist() if isinstance(value, Tensor) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
