"""Hooks for training with `ultralytics`: `train` takes the options of `yolorep.hosts.train_options`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from types import ModuleType
from typing import Any

from torch import nn

from yolorep.errors import UsageError
from yolorep.expansion import expand
from yolorep.host import ULTRALYTICS
from yolorep.hosts import train_options
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import decayed_as_asked, require
from yolorep.training.penalty import penalized_blocks

_command: ContextVar[Mapping[str, Any]] = ContextVar("options of the command line")


def attach(engine: ModuleType) -> Hooks:
    """Hook the imported module `ultralytics.engine.model` or `ultralytics.engine.trainer`.

    Raises:
        HostError: this version lacks a function that is hooked.
    """
    hooks = Hooks()
    if engine.__name__.endswith(".model"):
        require(engine, "Model.train", "Model.tune", supported=ULTRALYTICS.supported)
        hooks.wrap(engine.Model, "train", _train)
        hooks.wrap(engine.Model, "tune", _tune)
    else:
        require(engine, "BaseTrainer.build_optimizer", supported=ULTRALYTICS.supported)
        hooks.wrap(engine.BaseTrainer, "build_optimizer", _build_optimizer)
    return hooks


@contextmanager
def options_of_command(given: Mapping[str, Any]) -> Iterator[None]:
    """Pass options to `YOLO.train` around the host's command line, for the duration of the block."""
    token = _command.set(given)
    try:
        yield
    finally:
        _command.reset(token)


def _train(original: Any, yolo: Any, trainer: Any = None, **kwargs: Any) -> Any:
    given = {**_command.get({}), **{name: kwargs.pop(name) for name in train_options.NAMES if name in kwargs}}
    options = train_options.read(given)
    if not options or not isinstance(yolo.model, nn.Module):  # what is no module, the host refuses
        return original(yolo, trainer, **kwargs)
    if kwargs.get("resume") or yolo.overrides.get("resume"):
        names = ", ".join(given)
        raise UsageError(f"resume goes on with what the run was started with; leave out {names}")
    before = yolo.model
    asked = yolo.model = _as_asked(before, options)
    if not yolo.ckpt and not isinstance(kwargs.get("data"), (list, tuple)):
        trainer = _from_yaml(trainer or yolo._smart_load("trainer"), asked.yaml)
    try:
        return original(yolo, trainer, **kwargs)
    finally:
        if yolo.model is asked:  # the training did not begin, or was of several data sets, with a model for each
            yolo.model = before


def _tune(original: Any, yolo: Any, *args: Any, **kwargs: Any) -> Any:
    given = [name for name in train_options.NAMES if name in kwargs]
    if given:
        raise UsageError(
            f"tune trains a file in processes of its own and takes no {', '.join(given)}; accepted: a model that has "
            "its blocks, as from `yolorep expand IN OUT` or a YAML with rep:"
        )
    return original(yolo, *args, **kwargs)


def _as_asked(model: nn.Module, options: train_options.TrainOptions) -> Any:
    """Return a copy of the model, expanded if requested, with the request in its YAML; layers may be shared.

    Raises:
        UsageError, BlockError, HostError: the request cannot be met.
    """
    result: Any = copy(model)
    if options.policy is not None and options.expands(result.yaml, ULTRALYTICS):
        asked = options.policy
        result = expand(model, asked.block, identity=asked.identity, select=asked.select, start=asked.start)
    result.yaml = options.written(result.yaml, ULTRALYTICS)
    if options.equivalent_l2:
        penalized_blocks(result)
    return result


def _from_yaml(trainer: Any, yaml: dict[str, Any]) -> Any:
    """Return `trainer` with a model of this dictionary; given a YAML's name, it would read the file again."""

    def construct(*args: Any, **kwargs: Any) -> Any:
        made = trainer(*args, **kwargs)
        made.model = yaml
        made.setup_model()
        return made

    return construct


def _build_optimizer(original: Any, trainer: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return decayed_as_asked(original(trainer, model, *args, **kwargs), model)
