"""The checkpoints that the runs of a comparison start from: one set of dense weights for a seed and a network."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolorep.blocks.starts import SPLIT
from yolorep.calibration import MEASURED, calibration_batches
from yolorep.hosts.ultralytics.build import quiet


def make_start(model: str, data: str, rep: dict[str, Any] | None, seed: int, file: Path, imgsz: int = 640) -> None:
    """Write a checkpoint: dense weights that depend on the seed alone, then the branches.

    model, data: as ultralytics' `train` takes them. rep: a policy as YAML, or None for stock. imgsz: pixels of the
    training images on which start `split` measures statistics.
    """
    from ultralytics import YOLO
    from ultralytics.utils.checks import check_file

    yolo: Any = YOLO(model)
    split = (rep or {}).get("start") == SPLIT
    images = calibration_batches(Path(check_file(data)), MEASURED, imgsz) if split else None
    yolo.model = with_branches(dense(yolo, data, seed), rep, trained=is_trained(model), images=images)
    # A checkpoint of a run that was not finished has an EMA too, which a host would load in place of the model.
    yolo.ckpt = {**(yolo.ckpt or {}), "ema": None, "optimizer": None, "epoch": -1}
    yolo.save(str(file))


def dense(yolo: Any, data: str, seed: int) -> Any:
    """Return the stock model for the classes of a data set; a checkpoint's weights are kept where they fit."""
    torch.manual_seed(seed)
    content = deepcopy(yolo.model.yaml)
    channels = content.get("channels", content.get("ch", 3))
    with quiet():
        fresh = type(yolo.model)(content, ch=channels, nc=classes_of(data), verbose=False)
        if yolo.ckpt:
            fresh.load(yolo.model, verbose=False)
    return fresh


def with_branches(
    model: Any, rep: dict[str, Any] | None, *, trained: bool, images: Iterable[Tensor] | None = None
) -> Any:
    """Return an expanded copy of a dense model, or the model itself without `rep`.

    trained: whether the function is kept by default; else branches start as in the paper. images: for start `split`.
    """
    from yolorep.expansion import expand

    if rep is None:
        return model
    start = rep.get("start") or (None if trained else "paper")
    return expand(model, rep["block"], identity=rep["identity"], select=rep.get("select"), start=start, images=images)


def is_trained(model: str) -> bool:
    """Return whether `model=` names a checkpoint, whose weights are fine-tuned."""
    return Path(model).suffix == ".pt"


def classes_of(data: str) -> int:
    """Return the number of classes of a data set, as the host counts them."""
    from ultralytics.data.utils import check_det_dataset

    return int(check_det_dataset(data)["nc"])


def learning_rate(classes: int) -> float:
    """Return the learning rate that ultralytics' `optimizer=auto` takes with AdamW for this number of classes.

    Example:
        >>> learning_rate(80)
        0.000119
    """
    return round(0.002 * 5 / (4 + classes), 6)
