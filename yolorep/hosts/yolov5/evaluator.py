"""Run checkpoints of a YOLOv5 tree on images and data sets, by the tree's own preprocessing, NMS and `val.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from yolorep.hosts.predictions import Answer, task_of
from yolorep.hosts.shared_hooks import require
from yolorep.hosts.suspended_fuse import unfused
from yolorep.hosts.yolov5.compat import tree_modules
from yolorep.hosts.yolov5.launcher import teach_files

Raw = Any  # a tree's model output for one image


class HostEvaluator:
    """A checkpoint of a YOLOv5 tree: a detector, a segmenter or a classifier."""

    def __init__(self, path: Path, imgsz: int | None, repo: Path | None) -> None:
        common, general = tree_modules(repo, "models.common", "utils.general")
        require(common, "DetectMultiBackend", supported="YOLOv5 v6.1 to v7.0 and master, for images and data sets")
        with unfused():
            self.model = common.DetectMultiBackend(str(path), device=torch.device("cpu"))
        self.path, self.repo = path, repo
        self.task = TASK_OF.get(type(self.model.model).__name__, "detect")
        self.imgsz = general.check_img_size(imgsz or task_of(self.task).pixels, s=self.model.stride)

    @torch.no_grad()
    def answer(self, image: Path) -> Answer:
        return HOW[self.task].answer(self, image)

    def figures(self, data: Path) -> dict[str, float]:
        return figures_of(self.path, self.task, data, self.imgsz, self.repo)

    def read(self, image: Path, **options: Any) -> tuple[Tensor, tuple[int, ...]]:
        """Return an image as the network takes it, (1, 3, height, width), and the file's shape, (height, width, 3)."""
        (dataloaders,) = tree_modules(self.repo, "utils.dataloaders")
        images = dataloaders.LoadImages(str(image), img_size=self.imgsz, stride=self.model.stride, **options)
        _, pixels, original, *_ = next(iter(images))
        return torch.as_tensor(pixels).float()[None], original.shape


def figures_of(path: Path, task: str, data: Path, imgsz: int, repo: Path | None) -> dict[str, float]:
    """Return the figures of a checkpoint or an exported model by the tree's own `val.py`, one image at a time."""
    how = HOW[task]
    (general,) = tree_modules(repo, "utils.general")
    teach_files(general)
    (val,) = tree_modules(repo, how.script)
    options = {"imgsz": imgsz, "device": "cpu", "workers": 0, "half": False, **how.options}
    with TemporaryDirectory() as folder, unfused():
        found = val.run(data=str(data), weights=str(path), project=folder, batch_size=1, **options)
    figures = found[0] if isinstance(found[0], tuple) else found
    return {name: float(figures[index]) for name, index in how.figures.items()}


def _boxes(it: HostEvaluator, image: Path) -> Answer:
    x, shape = it.read(image)
    return _found(it, it.model(x / 255), x, shape)[0]


def _found(it: HostEvaluator, raw: Raw, x: Tensor, shape: tuple[int, ...], masks: int = 0) -> tuple[Answer, Tensor]:
    """Return boxes after NMS in pixels of the file, and the rows of the network for them, (n, 6 + masks)."""
    (general,) = tree_modules(it.repo, "utils.general")
    found: Tensor = general.non_max_suppression(raw, nm=masks)[0] if masks else general.non_max_suppression(raw)[0]
    scale = getattr(general, "scale_boxes", None) or general.scale_coords  # before v7.0
    boxes = scale(x.shape[2:], found[:, :4].clone(), shape)
    return {"class": found[:, 5], "position": boxes, "confidence": found[:, 4]}, found


def _masks(it: HostEvaluator, image: Path) -> Answer:
    (segment,) = tree_modules(it.repo, "utils.segment.general")
    x, shape = it.read(image)
    raw, prototypes = it.model(x / 255)[:2]
    boxes, found = _found(it, raw, x, shape, masks=it.model.model.model[-1].nm)
    if not len(found):
        return {**boxes, "mask": torch.zeros(0, 1, 1)}
    masks = segment.process_mask(prototypes[0], found[:, 6:], found[:, :4], x.shape[2:], upsample=True)
    return {**boxes, "mask": masks}


def _probabilities(it: HostEvaluator, image: Path) -> Answer:
    (augmentations,) = tree_modules(it.repo, "utils.augmentations")
    x, _ = it.read(image, transforms=augmentations.classify_transforms(it.imgsz))
    found = it.model(x).softmax(1)
    return {"class": found.argmax(1), "probability": found}


@dataclass(frozen=True)
class How:
    """How a tree runs one task. figures: index in the result of `val.run`, by name. options: of `val.run`."""

    answer: Callable[[HostEvaluator, Path], Answer]
    script: str
    figures: dict[str, int]
    options: dict[str, Any]


BOX = {"mAP50": 2, "mAP50-95": 3}
HOW = {
    "detect": How(_boxes, "val", BOX, {"plots": False}),
    "segment": How(_masks, "segment.val", {**BOX, "mask mAP50": 6, "mask mAP50-95": 7}, {"plots": False}),
    "classify": How(_probabilities, "classify.val", {"top-1": 0, "top-5": 1}, {}),
}
TASK_OF = {"SegmentationModel": "segment", "ClassificationModel": "classify"}  # any other model is a detector
