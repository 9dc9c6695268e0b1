"""Run checkpoints of ultralytics on images and data sets, by its own predictors and validators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from yolorep.errors import HostError, VerifyError
from yolorep.hosts.predictions import Answer, task_of
from yolorep.hosts.suspended_fuse import unfused

# ultralytics' name of a figure → the name in yolorep's reports. Precision and recall are left out: they belong to the
# confidence with the largest F1, and jump where two confidences have nearly the same F1.
FIGURES = {
    "metrics/mAP50(B)": "mAP50",
    "metrics/mAP50-95(B)": "mAP50-95",
    "metrics/mAP50(M)": "mask mAP50",
    "metrics/mAP50-95(M)": "mask mAP50-95",
    "metrics/mAP50(P)": "pose mAP50",
    "metrics/mAP50-95(P)": "pose mAP50-95",
    "metrics/accuracy_top1": "top-1",
    "metrics/accuracy_top5": "top-5",
    "metrics/mIoU": "mIoU",
    "metrics/pixel_acc": "pixel accuracy",
    "metrics/delta1": "delta1",
    "metrics/abs_rel": "absolute relative error",
    "metrics/rmse": "RMSE",
    "metrics/silog": "SILog",
}


class HostEvaluator:
    """A checkpoint of ultralytics, of any task; it needs no tree."""

    def __init__(self, path: Path, imgsz: int | None, _: Path | None = None) -> None:
        from ultralytics import YOLO

        self._model: Any = YOLO(path)
        self.path, self.task = path, str(self._model.task)
        self.imgsz = imgsz or task_of(self.task).pixels

    def answer(self, image: Path) -> Answer:
        with unfused():
            results = self._model.predict(image, imgsz=self.imgsz, verbose=False, save=False)
        if not results:  # it warns of an image that it cannot read, and goes on
            raise VerifyError(f"{image} cannot be read as an image")
        return ANSWERS[self.task](results[0].cpu())

    def figures(self, data: Path) -> dict[str, float]:
        return figures_of(self.path, self.task, data, self.imgsz)


def figures_of(path: Path, task: str, data: Path, imgsz: int, _: Path | None = None) -> dict[str, float]:
    """Return the figures of a checkpoint or an exported model by ultralytics' own validation, one image at a time."""
    from ultralytics import YOLO

    options = {"imgsz": imgsz, "batch": 1, "workers": 0, "plots": False, "verbose": False}
    with TemporaryDirectory() as folder, unfused():
        found = YOLO(path, task=task).val(data=str(data), project=folder, **options).results_dict  # type: ignore[arg-type]
    figures = {name: float(found[key]) for key, name in FIGURES.items() if key in found}
    if not figures:
        raise HostError(f"ultralytics reports none of the figures of {task}, but {', '.join(found)}")
    return figures


def _boxes(result: Any) -> Answer:
    found = result.boxes
    return {"class": found.cls, "position": found.xyxy, "confidence": found.conf}


def _masks(result: Any) -> Answer:
    boxes = _boxes(result)
    masks = result.masks.data if result.masks is not None else torch.zeros(len(boxes["class"]), 1, 1)
    return {**boxes, "mask": masks}


def _keypoints(result: Any) -> Answer:
    found = result.keypoints.data
    return {**_boxes(result), "keypoints": found[..., :2], "visibility": found[..., 2:]}


def _rotated(result: Any) -> Answer:
    found = result.obb
    return {"class": found.cls, "corners": found.xyxyxyxy, "confidence": found.conf}


def _probabilities(result: Any) -> Answer:
    found = result.probs.data[None]
    return {"class": found.argmax(1), "probability": found}


ANSWERS: dict[str, Callable[[Any], Answer]] = {
    "detect": _boxes,
    "segment": _masks,
    "pose": _keypoints,
    "obb": _rotated,
    "classify": _probabilities,
    "semantic": lambda result: {"class map": result.semantic_mask.data[None]},
    "depth": lambda result: {"depth": result.depth.data[None]},
}
