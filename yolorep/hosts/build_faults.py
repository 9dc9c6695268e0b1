"""Say in one sentence, with the row of the YAML, why a host could not build a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

from yolorep.errors import HostError, YolorepError, first_line
from yolorep.host import HOSTS
from yolorep.model_yaml import ROW_KINDS

MODULES = {name for host in HOSTS for name in host.model_modules}
BUILDS = ("__init__", "parse_model", "yaml_model_load")
FORWARDS = ("_predict_once", "_forward_once", "forward_once")  # with zeros, to find the strides
NOT_OF_A_ROW = (YolorepError, ModuleNotFoundError, FileNotFoundError, ConnectionError)


@contextmanager
def building(content: dict[str, Any] | None = None) -> Iterator[None]:
    """Turn what a host raises while it builds a model into HostError; errors from elsewhere pass.

    content: the model dictionary as the user wrote it, where the host builds from another.
    """
    try:
        yield
    except NOT_OF_A_ROW:
        raise
    except Exception as error:  # a YAML can be wrong in as many ways as the host has lines
        frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_globals.get("__name__") in MODULES]
        if not any(frame.f_code.co_name in BUILDS for frame in frames):
            raise
        file, row = _file(frames), _row(frames, content)
        where = ": ".join(filter(None, (file, row)))
        raise HostError(f"{where or 'the model'}: {_reason(error, row)}") from error


def _reason(error: Exception, row: str) -> str:
    if row and isinstance(error, (NameError, KeyError)) and str(error).count("'") == 2:
        name = str(error).split("'")[1]
        return f"{name!r} is not known here; accepted: layers of this host, nn.NAME, {', '.join(ROW_KINDS)}"
    return f"the host cannot build it: {type(error).__name__}: {first_line(error)}"


def _file(frames: list[FrameType]) -> str:
    """Return the YAML's path, as the innermost function that knows it was given it."""
    for frame in reversed(frames):
        for name in ("yaml_file", "path", "cfg", "d"):
            value = frame.f_locals.get(name)
            value = value.get("yaml_file") if isinstance(value, dict) else value
            if isinstance(value, (str, Path)):
                return str(value)
    return ""


def _row(frames: list[FrameType], content: dict[str, Any] | None) -> str:
    """Return "row INDEX (NAME)" of the layer that was being built, or run for the first time."""
    for frame in reversed(frames):
        known = frame.f_locals
        if frame.f_code.co_name == "parse_model" and isinstance(known.get("i"), int):
            d = content or known.get("d") or {}
            rows = [*d.get("backbone", ()), *d.get("head", ())]
            return f"row {known['i']} ({rows[known['i']][2]})"
        layer = known.get("m")
        if frame.f_code.co_name in FORWARDS and layer is not None and hasattr(layer, "i"):
            return f"row {layer.i} ({str(getattr(layer, 'type', type(layer).__name__)).rpartition('.')[2]})"
    return ""
