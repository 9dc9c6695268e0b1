"""Hooks for training with a YOLOv5 tree: build models and optimizers as `yolorep.hosts.train_options` request.

Weights whose branches would be lost in the transfer to a model are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt
from torch import nn

from yolorep.errors import HostError, UsageError
from yolorep.host import YOLOV5
from yolorep.hosts import train_options
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import decayed_as_asked, read_yaml, require
from yolorep.hosts.train_options import TrainOptions
from yolorep.hosts.weight_transfer import check_room

REBUILD = ("train.py", "segment/train.py")  # the scripts that build the model from its YAML


def take_options(script: str, arguments: Sequence[str]) -> list[str]:
    """Remove yolorep's options from a script's arguments and apply them to the models that the script builds.

    script: relative to its tree.

    Raises:
        UsageError, BlockError: the script takes no such options, resumes, or a value is not accepted.
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


def wrap_functions(hooks: Hooks, yolo: ModuleType, *, required: bool = True) -> None:
    """Hook the functions that a tree's training calls, also under the names that the script has imported them by.

    required: refuse a tree without these functions; a fork may train differently.

    Raises:
        HostError: a required function is missing; nothing is hooked.
    """
    owners = [(_owner(yolo, modules, name, required), name, around) for name, (modules, around) in FUNCTIONS.items()]
    for utils, name, around in owners:
        if utils is not None:
            hooks.wrap_copies(utils, name, around, [sys.modules.get("__main__")])


def _owner(yolo: ModuleType, modules: Sequence[str], name: str, required: bool = True) -> ModuleType | None:
    """The module of `yolo`'s tree that has the function `name`: it was imported by `yolo`. None: a tree without it.

    In the published package `models.yolo` is a second import of a file whose other modules are `yolov5.*`.
    """
    own = yolo.__name__.removesuffix("models.yolo")
    for prefix in dict.fromkeys((own, "yolov5.")):
        for module in modules:
            utils = sys.modules.get(prefix + module)
            if utils is not None and hasattr(utils, name):
                return utils
    if not required or (name in SINCE_V62 and not hasattr(yolo, "BaseModel")):
        return None
    where = getattr(yolo, "__file__", None) or yolo.__name__
    raise HostError(
        f"the tree of {where} has no {modules[0]}.{name}, which yolorep hooks; supported: {YOLOV5.supported}"
    )


def _intersect_dicts(original: Any, source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    check_room(source, target)
    return original(source, target, *args, **kwargs)


def _smart_optimizer(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return decayed_as_asked(original(model, *args, **kwargs), model)


# name: (the modules that have it in one tree or another, what is called around it)
FUNCTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "smart_optimizer": (("utils.torch_utils",), _smart_optimizer),
    "intersect_dicts": (("utils.general", "utils.torch_utils"), _intersect_dicts),
}
SINCE_V62 = ("smart_optimizer",)  # older trees build the optimizer within their training loop


def _build_as_asked(options: TrainOptions, yolo: ModuleType) -> None:
    if options.equivalent_l2 and _owner(yolo, FUNCTIONS["smart_optimizer"][0], "smart_optimizer") is None:
        raise HostError(f"{yolo.__file__}: equivalent_l2 needs the optimizer of YOLOv5 v6.2 or later; leave it out")
    name = "DetectionModel" if hasattr(yolo, "DetectionModel") else "Model"  # before v6.2
    require(yolo, name, supported=YOLOV5.supported)
    Hooks().wrap(getattr(yolo, name), "__init__", partial(_init, options))  # of segmentation models too


def _init(options: TrainOptions, original: Any, model: nn.Module, cfg: Any, *args: Any, **kwargs: Any) -> None:
    content = cfg if isinstance(cfg, dict) else read_yaml(Path(cfg), "a model YAML: accepted is a mapping")
    original(model, options.written(content, YOLOV5), *args, **kwargs)
    if not isinstance(cfg, dict):
        model.yaml_file = Path(cfg).name  # type: ignore[assignment]
