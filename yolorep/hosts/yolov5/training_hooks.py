"""Hooks for training with a YOLOv5 tree: build models and optimizers as `yolorep.hosts.train_options` request.

Weights whose branches would be lost in the transfer to a model are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt
from torch import nn

from yolorep.blocks.laws import MASK
from yolorep.blocks.registry import block_of
from yolorep.errors import HostError, UsageError
from yolorep.host import YOLOV5
from yolorep.hosts import train_options
from yolorep.hosts.announcements import announce_checkpoints, announce_training, logger_beside
from yolorep.hosts.based_yaml import has_base, with_base
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import naming, prepared, read_yaml, require
from yolorep.hosts.train_options import TrainOptions
from yolorep.hosts.weight_transfer import check_room, transferred
from yolorep.hosts.yolov5.tree import to_name

_asked: list[TrainOptions] = []  # of this process's script, at most one
_kept: ContextVar[list[Callable[[], None]] | None] = ContextVar("said at the end of a script", default=None)
REBUILD = ("train.py", "segment/train.py")  # the scripts that build the model from its YAML


def take_options(script: str, arguments: Sequence[str]) -> list[str]:
    """Remove yolorep's options from a script's arguments and apply them to the models that the script builds.

    script: relative to its tree.

    Raises:
        UsageError, BlockError: the script takes no such options, resumes, or a value is not accepted.
    """
    rest, given = train_options.from_flags(arguments)
    if not given:
        return rest
    names = ", ".join(f"--{name}" for name in given)
    if script not in REBUILD:
        raise UsageError(
            f"{script} does not take {names}; accepted: {' and '.join(REBUILD)}; "
            "give any other script a checkpoint that yolorep expand has written"
        )
    if any(argument.partition("=")[0] == "--resume" for argument in rest):
        raise UsageError(f"--resume goes on with what the run was started with; leave out {names}")
    options = train_options.read(given)
    if options.rep_from is not None:
        raise UsageError(
            f"--rep-from is for `yolorep train`: {script} keeps its schedule to itself; accepted: two runs, stock for "
            "the first epochs, then --weights LAST.pt --rep BLOCK for the others"
        )
    _asked.append(options)
    Hooks().wrap(argparse.ArgumentParser, "parse_known_args", partial(_record, options.recorded()))
    for name in ("models.yolo", "yolov5.models.yolo"):
        wrapt.register_post_import_hook(partial(_check_request, options), name)
    return rest


def forget_options() -> None:
    """Build models as their YAML says again, once the script that the options were given to has ended."""
    _asked.clear()


def _record(values: dict[str, Any], original: Any, *args: Any, **kwargs: Any) -> Any:
    """Add yolorep's options to what a script's parser returns, which goes to `opt.yaml`, checkpoints and loggers."""
    known, others = original(*args, **kwargs)
    if hasattr(known, "weights") and hasattr(known, "cfg"):
        vars(known).update(values)
    return known, others


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
    averaging, stripping = (_owner(yolo, [modules], name, False) for modules, name in ANNOUNCING)
    if averaging is not None:
        hooks.wrap(averaging.ModelEMA, "__init__", _average)
    if stripping is not None:
        hooks.wrap_copies(stripping, "strip_optimizer", _strip_optimizer, [sys.modules.get("__main__")])


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
    result = original(source, target, *args, **kwargs)
    told = transferred(result, target)
    if told:
        logger_beside(original).info(told)
    return result


@contextmanager
def announcing_at_the_end() -> Iterator[None]:
    """Say what there is to say of a run's checkpoints when the block ends: after the script's own last words."""
    token = _kept.set([])
    try:
        yield
        for announce in _kept.get() or ():
            announce()
    finally:
        _kept.reset(token)


def _strip_optimizer(original: Any, f: Any = "best.pt", *args: Any, **kwargs: Any) -> Any:
    """Strip a checkpoint; after the last one of a run, say how to deploy it. `last.pt` comes before `best.pt`."""
    result = original(f, *args, **kwargs)
    last, best = (Path(f).with_name(f"{name}.pt") for name in ("last", "best"))
    if Path(f).name == "best.pt" or (Path(f).name == "last.pt" and not best.is_file()):
        tree = Path(sys.modules[original.__module__].__file__ or "").parents[1]
        announce = partial(announce_checkpoints, logger_beside(original), best, last, to_name(tree))
        kept = _kept.get()
        announce() if kept is None else kept.append(announce)
    return result


def _average(original: Any, ema: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Make the averaged model, which training does once, in its first process; say what is trained."""
    original(ema, model, *args, **kwargs)
    announce_training(model)


def _smart_optimizer(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return prepared(original(model, *args, **kwargs), model)


# name: (modules that define it in one of the trees, the function that wraps it)
FUNCTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "smart_optimizer": (("utils.torch_utils",), _smart_optimizer),
    "intersect_dicts": (("utils.general", "utils.torch_utils"), _intersect_dicts),
}
# Where a run says what it trains, and how to deploy it; a tree without them trains all the same.
ANNOUNCING = (("utils.torch_utils", "ModelEMA"), ("utils.general", "strip_optimizer"))
SINCE_V62 = ("smart_optimizer",)  # older trees build the optimizer within their training loop


def _check_request(options: TrainOptions, yolo: ModuleType) -> None:
    masked = options.policy is not None and block_of(options.policy.block).law == MASK
    name = "equivalent_l2" if options.equivalent_l2 else "gain_lr" if options.gain_lr else ""
    name = name or (f"rep={options.policy.block}" if masked else "")  # type: ignore[union-attr]
    if name and _owner(yolo, FUNCTIONS["smart_optimizer"][0], "smart_optimizer") is None:
        raise HostError(f"{yolo.__file__}: {name} needs the optimizer of YOLOv5 v6.2 or later; leave it out")
    require(yolo, _builder(yolo), supported=YOLOV5.supported)


def wrap_models(hooks: Hooks, yolo: ModuleType) -> None:
    """Hook the class whose `__init__` builds models, of segmentation too, from the name of a YAML or a dictionary."""
    if hasattr(yolo, _builder(yolo)):
        hooks.wrap(getattr(yolo, _builder(yolo)), "__init__", _init)


def _builder(yolo: ModuleType) -> str:
    return "DetectionModel" if hasattr(yolo, "DetectionModel") else "Model"  # before v6.2


def _init(original: Any, model: nn.Module, cfg: Any = "yolov5s.yaml", *args: Any, **kwargs: Any) -> None:
    file = None if isinstance(cfg, dict) else Path(cfg)
    with naming(file):
        if not _asked and not has_base(file):
            original(model, cfg, *args, **kwargs)
            return
        content = cfg if file is None else read_yaml(file, "a model YAML: accepted is a mapping")
        if file is not None:
            tree = Path(sys.modules[original.__module__].__file__ or "").parents[1]
            content = with_base(content, file, YOLOV5, tree)
        original(model, _asked[-1].written(content, YOLOV5) if _asked else content, *args, **kwargs)
        if file is not None:
            model.yaml_file = file.name  # type: ignore[assignment]
