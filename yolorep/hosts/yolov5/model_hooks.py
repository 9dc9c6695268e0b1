"""Hooks for a YOLOv5 tree (`models.yolo`) and for the published package (`yolov5.models.yolo`)."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from yolorep.errors import HostError
from yolorep.host import YOLOV5
from yolorep.hosts import other_trees
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import fuse_after_deploy, parse_planned
from yolorep.hosts.yolov5.compat import stand_in
from yolorep.hosts.yolov5.training_hooks import wrap_functions
from yolorep.stock_layers import stock_convs

# Other projects have a `models.yolo` with a `parse_model` too; most have neither of these names (YOLOv9 has both).
MARKS = ("BaseModel", "check_yaml")


def attach(yolo: ModuleType) -> Hooks:
    """Hook an imported `models.yolo`; in another project's module of that name only `fuse` (`hosts.other_trees`).

    Raises:
        HostError: a YOLOv5 tree with functions that the hooks do not know.
    """
    marked = any(hasattr(yolo, mark) for mark in MARKS)
    hooks = Hooks() if marked and hasattr(yolo, "parse_model") else other_trees.attach(yolo)
    if hooks or not hasattr(yolo, "parse_model"):
        return hooks
    unknown = _unknown(yolo)
    if unknown and marked:
        raise HostError(f"{unknown}; supported: {YOLOV5.supported}")
    if unknown:
        warnings.warn(
            f"{unknown}: this is no tree that yolorep knows, its `rep:` YAMLs are not built and its fuse() leaves "
            f"rep blocks as they are; call yolorep.deploy(model) before it. Supported: {YOLOV5.supported}",
            stacklevel=2,
        )
        return hooks
    stand_in()  # the tree's own scripts, run without the launcher, read checkpoints by a torch that they do not know
    wrap_functions(hooks, yolo, required=marked)
    hooks.wrap(yolo, "parse_model", _parse_model)
    hooks.wrap(_fuses(yolo), "fuse", partial(_fuse, yolo))
    return hooks


def _fuses(yolo: ModuleType) -> Any:
    """Return the class that has `fuse`: `BaseModel` since v6.2, `Model` before."""
    return getattr(yolo, "BaseModel", None) or getattr(yolo, "Model", None)


def _unknown(yolo: ModuleType) -> str:
    """Return what the hooks do not know about a `models.yolo`; empty if they know all of it."""
    where = getattr(yolo, "__file__", None) or yolo.__name__
    if not hasattr(yolo, "Conv"):
        return f"{where} has no Conv"
    if not hasattr(_fuses(yolo), "fuse"):
        return f"{where} has no BaseModel.fuse or Model.fuse"
    if not callable(yolo.parse_model):
        return f"{where} has no function parse_model"
    parameters = list(inspect.signature(yolo.parse_model).parameters)
    if parameters[:2] != ["d", "ch"]:
        return f"{where}: parse_model takes ({', '.join(parameters)}), and yolorep hooks one that takes (d, ch, ...)"
    return ""


def _parse_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return parse_planned(original, YOLOV5, *args, **kwargs)


def _fuse(yolo: ModuleType, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return fuse_after_deploy(partial(_fuse_twins, yolo, original), model, *args, **kwargs)


def _fuse_twins(yolo: ModuleType, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Rebase the layers of a checkpoint so that a tree's `fuse()` recognizes them, then call it.

    The published package is imported under two names, `models` and `yolov5.models`, with two sets of classes. Its
    `fuse` looks for one set and passes over layers of the other.
    """
    for _, layer in stock_convs(model):
        if not isinstance(layer, yolo.Conv):
            layer.__class__ = getattr(yolo, type(layer).__name__)
    return original(model, *args, **kwargs)
