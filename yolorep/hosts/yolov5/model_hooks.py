"""Hooks for a YOLOv5 tree (`models.yolo`) and for the published package (`yolov5.models.yolo`)."""

from __future__ import annotations

import inspect
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from yolorep.errors import HostError
from yolorep.host import YOLOV5
from yolorep.hosts import other_trees
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import fuse_after_deploy, parse_planned, require
from yolorep.hosts.yolov5.training_hooks import wrap_functions
from yolorep.stock_layers import stock_convs

# Other projects have a `models.yolo` too, some with a `parse_model`; most have neither of these (YOLOv9 has both).
MARKS = ("BaseModel", "check_yaml")


def attach(yolo: ModuleType) -> Hooks:
    """Hook an imported `models.yolo`; in another project's module of that name only `fuse` (`hosts.other_trees`).

    Raises:
        HostError: it is a YOLOv5 tree of a shape that the hooks do not know.
    """
    hooks = Hooks()
    if not hasattr(yolo, "parse_model") or not any(hasattr(yolo, mark) for mark in MARKS):
        return other_trees.attach(yolo)
    require(yolo, "BaseModel.fuse", "Conv", supported=YOLOV5.supported)
    parameters = list(inspect.signature(yolo.parse_model).parameters)
    if parameters[:2] != ["d", "ch"]:
        takes = f"{yolo.__name__}.parse_model takes ({', '.join(parameters)})"
        raise HostError(f"{takes}; yolorep hooks one that takes (d, ch, ...); supported: {YOLOV5.supported}")
    wrap_functions(hooks, yolo)
    hooks.wrap(yolo, "parse_model", _parse_model)
    hooks.wrap(yolo.BaseModel, "fuse", partial(_fuse, yolo))
    return hooks


def _parse_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return parse_planned(original, YOLOV5, *args, **kwargs)


def _fuse(yolo: ModuleType, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return fuse_after_deploy(partial(_fuse_twins, yolo, original), model, *args, **kwargs)


def _fuse_twins(yolo: ModuleType, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`fuse` of a tree, for layers of its twin too.

    The published package is imported under two names, `models` and `yolov5.models`, each with classes of its own. Its
    `fuse` looks for one of the two and passes over the layers of a checkpoint that names the other.
    """
    for _, layer in stock_convs(model):
        if not isinstance(layer, yolo.Conv):
            layer.__class__ = getattr(yolo, type(layer).__name__)
    return original(model, *args, **kwargs)
