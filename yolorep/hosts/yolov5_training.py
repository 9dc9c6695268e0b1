"""Hooks for training with a YOLOv5 tree: models built and optimizers decayed as `yolorep.hosts.train_options` ask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt
import yaml
from torch import nn

from yolorep import rows
from yolorep.errors import UsageError
from yolorep.hosts import train_options
from yolorep.hosts.common import decayed_as_asked
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.train_options import TrainOptions

REBUILD = ("train.py", "segment/train.py")  # the scripts that build the model from its YAML


def take_options(script: str, arguments: Sequence[str]) -> list[str]:
    """Take yolorep's options out of a script's arguments, and have the models that it builds be as they ask.

    script: relative to its tree.

    Raises:
        UsageError, BlockError: the script takes none, resumes, or a value is not accepted.
    """
    theirs, given = train_options.from_flags(arguments)
    if not given:
        return theirs
    names = ", ".join(f"--{name}" for name in given)
    if script not in REBUILD:
        raise UsageError(
            f"{script} does not take {names}; accepted: {' and '.join(REBUILD)}; "
            "give any other script a checkpoint that yolorep expand has written"
        )
    if any(argument.partition("=")[0] == "--resume" for argument in theirs):
        raise UsageError(f"--resume goes on with what the run was started with; leave out {names}")
    options = train_options.read(given)
    for name in ("models.yolo", "yolov5.models.yolo"):
        wrapt.register_post_import_hook(partial(_build_as_asked, options), name)
    return theirs


def wrap_optimizer(hooks: Hooks, yolo: ModuleType) -> None:
    """Hook the function of a tree that builds optimizers."""
    wrap_function(hooks, yolo, "utils.torch_utils", "smart_optimizer", _smart_optimizer)


def wrap_function(hooks: Hooks, yolo: ModuleType, module: str, name: str, around: Callable[..., Any]) -> None:
    """Hook a function of a tree's `module`, and the script's own name for it if it has that already."""
    utils = sys.modules.get(yolo.__name__.replace("models.yolo", module))
    function = getattr(utils, name, None)
    for owner in (utils, sys.modules.get("__main__")):
        if function is not None and getattr(owner, name, None) is function:
            hooks.wrap(owner, name, around)


def _smart_optimizer(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return decayed_as_asked(original(model, *args, **kwargs), model)


def _build_as_asked(options: TrainOptions, yolo: ModuleType) -> None:
    Hooks().wrap(yolo.DetectionModel, "__init__", partial(_init, options))  # of segmentation models too


def _init(options: TrainOptions, original: Any, model: nn.Module, cfg: Any, *args: Any, **kwargs: Any) -> None:
    content = cfg if isinstance(cfg, dict) else yaml.safe_load(Path(cfg).read_text(errors="ignore"))
    original(model, options.written(content, rows.YOLOV5), *args, **kwargs)
    if not isinstance(cfg, dict):
        model.yaml_file = Path(cfg).name  # type: ignore[assignment]
