"""Build a model of ultralytics from a YAML, for commands that do not train it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from yolorep.errors import HostError, UsageError, YolorepError
from yolorep.host import ULTRALYTICS
from yolorep.hosts.build_faults import building
from yolorep.hosts.model_files import check_model_yaml
from yolorep.hosts.offline import go_offline


def build(what: str, classes: int | None = None) -> nn.Module:
    """Return ultralytics' model of a YAML, by file name or path. classes: build a classifier with so many classes.

    Raises:
        UsageError: no such YAML.
        BlockError, HostError: the YAML cannot be built.
    """
    go_offline()
    from ultralytics import RTDETR, YOLO
    from ultralytics.nn.tasks import ClassificationModel, yaml_model_load

    check_model_yaml(Path(what), ULTRALYTICS)
    try:
        with quiet(), building():
            if classes is not None:
                return ClassificationModel(what, nc=classes, verbose=False)
            head = str(yaml_model_load(what)["head"][-1][2])  # YOLO tells the task of every head but this one
            model: Any = (RTDETR if head.startswith("RTDETR") else YOLO)(what).model
    except YolorepError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{what} is neither a file nor a model YAML that yolorep or ultralytics ships") from None
    except Exception as error:  # a YAML can be wrong in as many ways as the host has lines
        raise HostError(f"ultralytics cannot build {what}: {type(error).__name__}: {error}") from None
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the hosts' log lines below a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
