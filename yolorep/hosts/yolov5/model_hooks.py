"""Hooks for a YOLOv5 tree (`models.yolo`) and for the published package (`yolov5.models.yolo`)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from yolorep.deployment import stock_attributes
from yolorep.errors import HostError
from yolorep.host import YOLOV5
from yolorep.hosts import other_trees
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import fuse_after_deploy, parse_planned
from yolorep.hosts.yolov5.compat import stand_in
from yolorep.hosts.yolov5.training_hooks import wrap_functions, wrap_models
from yolorep.stock_layers import stock_convs

# Other projects have a `models.yolo` with a `parse_model` too; most have neither of these names (YOLOv9 has both).
MARKS = ("BaseModel", "check_yaml")
ACTIVATION = "activation"  # top-level key of a model YAML: an expression that makes a layer


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
    wrap_models(hooks, yolo)
    hooks.wrap(yolo, "parse_model", partial(_parse_model, yolo))
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


def _parse_model(yolo: ModuleType, original: Any, d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    with _activation(yolo, d):
        return parse_planned(original, YOLOV5, d, *args, **kwargs)


@contextmanager
def _activation(yolo: ModuleType, d: dict[str, Any]) -> Iterator[None]:
    """Let the `activation` of a YAML hold for its model alone: a tree leaves it to every model built after.

    Raises:
        HostError: a tree before v7.0, which has SiLU everywhere, is asked for another activation.
    """
    asked, default = d.get(ACTIVATION), getattr(yolo.Conv, "default_act", None)
    if asked and default is None and "SiLU" not in str(asked):
        raise HostError(f"activation: {asked} needs YOLOv5 v7.0 or later; accepted by this tree: torch.nn.SiLU()")
    try:
        yield
    finally:
        if default is not None:
            yolo.Conv.default_act = default


def _fuse(yolo: ModuleType, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Name stock layers in the rows of `model.yaml` too: a tree's TensorFlow exports build a fused model from them.

    A policy under `rep:` stays, so that a model that is built from the YAML of a fused one has its branches again.
    """
    yaml: Any = getattr(model, "yaml", None)
    attributes = stock_attributes(model)
    fused = fuse_after_deploy(partial(_fuse_twins, yolo, original), model, *args, **kwargs)
    if "yaml" in attributes:
        model.yaml = {**attributes["yaml"], **({"rep": yaml["rep"]} if "rep" in yaml else {})}  # type: ignore[assignment]
    return fused


def _fuse_twins(yolo: ModuleType, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Rebase the layers of a checkpoint so that a tree's `fuse()` recognizes them, then call it.

    The published package is imported under two names, `models` and `yolov5.models`, with two sets of classes. Its
    `fuse` looks for one set and passes over layers of the other.
    """
    for _, layer in stock_convs(model):
        if not isinstance(layer, yolo.Conv):
            layer.__class__ = getattr(yolo, type(layer).__name__)
    return original(model, *args, **kwargs)
