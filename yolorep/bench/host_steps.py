"""What surrounds the network: images, pre-processing and NMS, by the host's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from yolorep.errors import UsageError
from yolorep.host import ULTRALYTICS, host_of
from yolorep.hosts.evaluate import image_files

Picture = Any  # (height, width, 3), uint8, BGR
DETECTORS = ("DetectionModel", "Model")  # of ultralytics and new trees, and of older trees
LEAST_CONFIDENCE, IOU = 0.1, 0.7  # ultralytics' predict has 0.25 and 0.7; lower, to see boxes at its threshold


def is_detector(model: nn.Module) -> bool:
    """Return whether the model's outputs are boxes and class scores, and nothing more."""
    head = type(list(getattr(model, "model", [model]))[-1]).__name__
    return type(model).__name__ in DETECTORS and head.endswith("Detect")


def pictures(images: Path | None, limit: int) -> list[Picture]:
    """Read up to `limit` images; by default those that ultralytics ships.

    Raises:
        UsageError: a file is not an image that OpenCV reads.
        VerifyError: `images` is neither an image nor a folder of images.
    """
    if images is None:
        from ultralytics.utils import ASSETS

        files = sorted(Path(ASSETS).glob("*.jpg"))
    else:
        files = image_files(images)
    found = []
    for file in files[:limit]:
        data = np.fromfile(file, dtype=np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if picture is None:
            raise UsageError(f"{file} cannot be read as an image")
        found.append(picture)
    if found:
        return found
    return [np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)]


def preprocess(batch: Sequence[Picture], size: int) -> Tensor:
    """Letterbox, BGR to RGB, scale to [0, 1]: pictures → (batch, 3, size, size), as both hosts do it."""
    from ultralytics.data.augment import LetterBox

    boxed: list[Any] = [LetterBox((size, size), auto=False)(image=picture) for picture in batch]
    stacked = np.ascontiguousarray(np.stack(boxed)[..., ::-1].transpose(0, 3, 1, 2))
    return torch.from_numpy(stacked).float() / 255


def nms(model: nn.Module, repo: Path | None = None) -> Callable[[Tensor], list[Tensor]]:
    """Return the host's NMS: decoded predictions → (n, 6) for each image: x1, y1, x2, y2, confidence, class."""
    if host_of(model) is ULTRALYTICS:
        # Before 8.3.200 it is in another module.
        module = "ultralytics.utils.nms" if find_spec("ultralytics.utils.nms") else "ultralytics.utils.ops"
        non_max_suppression = import_module(module).non_max_suppression
        classes = len(getattr(model, "names", ())) or 0

        def by_ultralytics(predictions: Tensor) -> list[Tensor]:
            kept = non_max_suppression(predictions.clone(), LEAST_CONFIDENCE, IOU, nc=classes, max_time_img=10)
            return [boxes[:, :6] for boxes in kept]

        return by_ultralytics
    from yolorep.hosts.yolov5.compat import tree_modules

    (general,) = tree_modules(repo, "utils.general")
    return lambda predictions: general.non_max_suppression(predictions.clone(), LEAST_CONFIDENCE, 0.45)
