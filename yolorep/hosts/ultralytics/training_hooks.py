"""Hooks for training with `ultralytics`: `train` takes the options of `yolorep.hosts.train_options`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from yolorep import plugins
from yolorep.errors import UsageError, YolorepError
from yolorep.expansion import expand
from yolorep.host import ULTRALYTICS
from yolorep.hosts import train_options
from yolorep.hosts.announcements import announce_checkpoints, announce_training, logger_of
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import prepared, require
from yolorep.hosts.ultralytics import late, run_record
from yolorep.late_request import LATE
from yolorep.model_yaml import earlier_line, without_earlier
from yolorep.training.gain_rate import branch_gains
from yolorep.training.penalty import penalized_blocks

FIRST = (-1, 0)  # ranks of the process that writes: alone, and the first of several
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
        names = ("BaseTrainer.build_optimizer", "BaseTrainer.run_callbacks", "BaseTrainer.train", "RANK")
        require(engine, *names, supported=ULTRALYTICS.supported)
        hooks.wrap(engine.BaseTrainer, "build_optimizer", _build_optimizer)
        hooks.wrap(engine.BaseTrainer, "train", _train_in_processes)
        hooks.wrap(engine.BaseTrainer, "run_callbacks", partial(_run_callbacks, engine.RANK in FIRST))
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
    if plugins.OPTION in kwargs:
        plugins.use(kwargs.pop(plugins.OPTION))
    given = {**_command.get({}), **{name: kwargs.pop(name) for name in train_options.NAMES if name in kwargs}}
    options = train_options.read(given)
    if not options or not isinstance(yolo.model, nn.Module):  # the host refuses anything but a module
        return original(yolo, trainer, **kwargs)
    if kwargs.get("resume") or yolo.overrides.get("resume"):
        names = ", ".join(given)
        raise UsageError(f"resume goes on with what the run was started with; leave out {names}")
    before = yolo.model
    asked = yolo.model = _as_asked(before, options)
    if not yolo.ckpt and not isinstance(kwargs.get("data"), (list, tuple)):
        trainer = _from_yaml(trainer or yolo._smart_load("trainer"), asked.yaml)
    try:
        with run_record.recording(options.recorded()):
            return original(yolo, trainer, **kwargs)
    except YolorepError:
        yolo.model = before
        raise
    finally:
        if yolo.model is asked:  # no training began, or the host trained one model for each of several data sets
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
    told = earlier_line(result.yaml)
    if told is not None:
        logger_of(model).info(f"yolorep: {told}")
    stock = without_earlier(result.yaml)
    yaml, expanded = options.written(stock, ULTRALYTICS), result
    if options.policy is not None and options.expands(stock, ULTRALYTICS):
        asked = options.policy
        late = options.rep_from is not None
        start = "silent" if late else asked.start  # images are there in training only
        scaled: Any = copy(model)
        scaled.yaml = {key: value for key, value in yaml.items() if key not in ("rep", LATE)}
        expanded = expand(scaled, asked.block, identity=asked.identity, select=asked.select, start=start)
        result = result if late else expanded
    result.yaml = yaml
    if options.equivalent_l2:
        penalized_blocks(expanded)
    if options.gain_lr is not None:
        branch_gains(expanded)
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
    def build(model: nn.Module) -> Any:
        return prepared(original(trainer, model, *args, **kwargs), model)

    if late.request_of(trainer) is not None:
        setattr(trainer, late.REBUILT, build)
    return build(model)


def _train_in_processes(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a run of several devices here, before the host starts the processes, whose errors are tracebacks."""
    if late.several_devices(trainer):
        late.check(trainer)
    return original(trainer, *args, **kwargs)


def _run_callbacks(first: bool, original: Any, trainer: Any, event: str, *args: Any, **kwargs: Any) -> Any:
    """Let loggers record yolorep's options too; before the first step and after the last, say what there is to know.

    first: whether this process writes the run's files.
    """
    if event == "on_train_epoch_start":
        late.begin_epoch(trainer)
    if event not in run_record.LOGGED_AT:
        result = original(trainer, event, *args, **kwargs)
        if event == "on_train_end":
            announce_checkpoints(logger_of(trainer.ema.ema), trainer.best, trainer.last)
        return result
    late.forget_earlier_(trainer)
    options = run_record.options_of(trainer)
    with run_record.lent(trainer.args, options):
        result = original(trainer, event, *args, **kwargs)
    if event == "on_pretrain_routine_end":
        late.check(trainer)
        announce_training(trainer.model)
        late.tell(trainer)
        if first:
            run_record.write(trainer.save_dir, options)
    return result
