"""The options of a run in ultralytics' records: `args.yaml`, and the arguments that its loggers take.

A stock `yolo` refuses arguments that it does not know, in a file too. They therefore stand in `args.yaml` as comments,
and in the trainer's arguments only while loggers read them; no checkpoint holds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn

from yolorep.atomic_files import written_whole
from yolorep.host import unwrapped
from yolorep.hosts.train_options import recorded_of
from yolorep.paths import is_file

FILE = "args.yaml"
TITLE = "# yolorep, which a stock yolo does without:"
# Events at which ultralytics' loggers record a run's arguments.
LOGGED_AT = ("on_pretrain_routine_start", "on_pretrain_routine_end")
_given: ContextVar[Mapping[str, Any]] = ContextVar("options of the run that is started")


@contextmanager
def recording(options: Mapping[str, Any]) -> Iterator[None]:
    """Record these options, as `TrainOptions.recorded` gives them, for the runs that are started in the block."""
    token = _given.set(options)
    try:
        yield
    finally:
        _given.reset(token)


def record_in_process(options: Mapping[str, Any]) -> None:
    """Record these options for every run of this process, which another one has started."""
    _given.set(options)


def given() -> Mapping[str, Any]:
    """Return the options that are recorded for the runs that are started now."""
    return _given.get({})


def options_of(trainer: Any) -> Mapping[str, Any]:
    """Return the options of a trainer's run: those of its model's YAML once it is built, until then those given."""
    model = getattr(trainer, "model", None)
    yaml = getattr(unwrapped(model), "yaml", None) if isinstance(model, nn.Module) else None
    return (recorded_of(yaml) if isinstance(yaml, dict) else {}) or given()


@contextmanager
def lent(args: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Add options to a trainer's arguments for the duration of the block."""
    for name, value in options.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name in options:
            if hasattr(args, name):
                delattr(args, name)


def read(file: Path) -> dict[str, Any]:
    """Return the options that `write` added to an `args.yaml`; none for a file without."""
    if not is_file(file):
        return {}
    lines = file.read_text(encoding="utf-8", errors="ignore").partition(TITLE)[2].splitlines()
    options = dict(line.removeprefix("# ").split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return {name: json.loads(text) for name, text in options.items() if text != "null"}


def write(folder: Path, options: Mapping[str, Any]) -> None:
    """Add options to the `args.yaml` of a run as comments, in place of those that are there."""
    file = folder / FILE
    if not options or not file.is_file():
        return
    text = file.read_text(encoding="utf-8").partition(TITLE)[0]
    lines = [TITLE, *(f"# {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in options.items())]
    with written_whole(file) as stream:
        stream.write(text + "\n".join(lines) + "\n")
