"""`yolorep tune`: ultralytics tunes hyperparameters from Python alone; its command has no such mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolorep.errors import UsageError

NEEDED = ("model", "data")
ACCEPTED = "model=, data=, iterations= and the arguments of train"


def tune(arguments: Sequence[str]) -> None:
    """Call `tune` of ultralytics' model class. arguments: ARG=VALUE, read as ultralytics' command reads them.

    Raises:
        UsageError: `model=` or `data=` is missing, or an argument has a form or value that is not accepted.
    """
    given = _read(arguments)
    from ultralytics import RTDETR, YOLO

    file = str(given.pop("model"))
    model: Any = RTDETR(file) if "rtdetr" in file.lower() else YOLO(file, task=given.pop("task", None))
    model.tune(**given)


def _read(arguments: Sequence[str]) -> dict[str, Any]:
    from ultralytics.cfg import merge_equals_args, parse_key_value_pair

    words = merge_equals_args(list(arguments))
    others = [word for word in words if not all(word.partition("=")[::2]) or word.startswith(("-", "cfg=", "mode="))]
    if others:
        raise UsageError(f"tune does not take {others[0]!r}; accepted: {ACCEPTED}")
    given = dict(map(parse_key_value_pair, words))
    missing = [f"{name}=" for name in NEEDED if not given.get(name)]
    if missing:
        raise UsageError(f"tune has no {' and '.join(missing)}; accepted: {ACCEPTED}")
    iterations = given.get("iterations", 1)
    if type(iterations) is not int or iterations < 1:
        raise UsageError(f"iterations={iterations} is not accepted; accepted: a whole number from 1")
    return given
