"""Two checkpoints on real images: the boxes after NMS, and mAP by the host's own validation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from yolorep.errors import VerifyError
from yolorep.hosts import attached
from yolorep.hosts.checkpoints import host_of
from yolorep.hosts.compat import tree_modules
from yolorep.hosts.launcher import teach_files

Detector = Callable[[Path], Tensor]

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PIXELS, CONFIDENCE = 0.5, 1e-3  # a box moved by less, with a confidence changed by less, is the same box
MAP_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BoxReport:
    """Boxes of two models on the same images. unmatched: boxes of either that the other does not have."""

    images: int
    boxes: int
    unmatched: int
    max_pixels: float
    max_confidence: float

    @property
    def ok(self) -> bool:
        return not self.unmatched

    def __str__(self) -> str:
        return (
            f"{self.boxes} boxes on {self.images} images: {self.unmatched} differ; the others moved by at most "
            f"{self.max_pixels:.1e} px, their confidence by {self.max_confidence:.1e}"
        )


def compare_boxes(before: Path, after: Path, images: Path, *, imgsz: int, repo: Path | None = None) -> BoxReport:
    """Detect on every image with both checkpoints, each as it is stored: nothing is folded or fused on the way.

    images: a file or a folder.

    Raises:
        VerifyError: no image there.
    """
    paths = image_files(images)
    detect = detector(before, imgsz, repo), detector(after, imgsz, repo)
    unmatched, boxes, pixels, confidence = 0, 0, 0.0, 0.0
    for path in paths:
        a, b = detect[0](path), detect[1](path)
        pairs = match(a, b)
        boxes += len(a)
        unmatched += len(a) + len(b) - 2 * len(pairs)
        for i, j in pairs:
            pixels = max(pixels, float((a[i, :4] - b[j, :4]).abs().max()))
            confidence = max(confidence, abs(float(a[i, 4] - b[j, 4])))
    return BoxReport(len(paths), boxes, unmatched, pixels, confidence)


def match(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """Pairs of the same box in two sets of (n, 6) x1, y1, x2, y2, confidence, class; each box at most once."""
    free, pairs = list(range(len(b))), []
    for i in range(len(a)):
        for j in free:
            moved = float((a[i, :4] - b[j, :4]).abs().max())
            if a[i, 5] == b[j, 5] and moved < PIXELS and abs(float(a[i, 4] - b[j, 4])) < CONFIDENCE:
                pairs.append((i, j))
                free.remove(j)
                break
    return pairs


def image_files(images: Path) -> list[Path]:
    """Raises:
    VerifyError: `images` is neither an image nor a folder with images.
    """
    found = [images] if images.is_file() else sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGES)
    if not found:
        raise VerifyError(f"{images} is neither an image nor a folder that holds images ({', '.join(sorted(IMAGES))})")
    return found


def detector(checkpoint: Path, imgsz: int, repo: Path | None = None) -> Detector:
    """A function from an image file to its boxes, (n, 6), by the host's own preprocessing and NMS."""
    if host_of(checkpoint) == "ultralytics":
        return _ultralytics_detector(checkpoint, imgsz)
    return _yolov5_detector(checkpoint, imgsz, repo)


def mean_average_precision(
    checkpoint: Path, data: Path, *, imgsz: int, repo: Path | None = None
) -> tuple[float, float]:
    """(mAP50, mAP50-95) of a checkpoint as it is stored, by the host's own validation, one image at a time.

    One at a time because the NMS of both hosts gives up on the rest of a batch after a time limit, which a busy
    machine reaches; the clock is looked at after an image, so that the first is always complete.

    Raises:
        VerifyError: no such data file.
    """
    if not data.is_file():
        raise VerifyError(f"{data} does not exist; accepted: a data.yaml of the host")
    if host_of(checkpoint) == "ultralytics":
        return _ultralytics_map(checkpoint, data, imgsz)
    return _yolov5_map(checkpoint, data, imgsz, repo)


@contextmanager
def unfused() -> Iterator[None]:
    """Have the hosts run models as they are stored: their `fuse` does nothing meanwhile."""
    modules: list[Any] = [sys.modules.get(name) for name in attached()]
    bases = [module.BaseModel for module in modules if hasattr(module, "BaseModel")]
    originals = [base.fuse for base in bases]
    for base in bases:
        base.fuse = lambda model, *args, **kwargs: model
    try:
        yield
    finally:
        for base, fuse in zip(bases, originals, strict=True):
            base.fuse = fuse


def ultralytics_predictor(checkpoint: Path, imgsz: int) -> Callable[[Path], Any]:
    """A function from an image file to ultralytics' result for it, the model run as it is stored."""
    from ultralytics import YOLO

    model = YOLO(checkpoint)

    def predict(image: Path) -> Any:
        with unfused():
            results: Any = model.predict(image, imgsz=imgsz, verbose=False, save=False)
        return results[0]

    return predict


def _ultralytics_detector(checkpoint: Path, imgsz: int) -> Detector:
    predict = ultralytics_predictor(checkpoint, imgsz)
    return lambda image: predict(image).boxes.data.cpu()


def _ultralytics_map(checkpoint: Path, data: Path, imgsz: int) -> tuple[float, float]:
    from ultralytics import YOLO

    model = YOLO(checkpoint)
    with TemporaryDirectory() as folder, unfused():
        options = {"imgsz": imgsz, "batch": 1, "workers": 0, "plots": False, "verbose": False}
        box = model.val(data=str(data), project=folder, **options).box
    return float(box.map50), float(box.map)


def _yolov5_detector(checkpoint: Path, imgsz: int, repo: Path | None) -> Detector:
    common, dataloaders, general = tree_modules(repo, "models.common", "utils.dataloaders", "utils.general")
    with unfused():
        model = common.DetectMultiBackend(str(checkpoint), device=torch.device("cpu"))

    @torch.no_grad()
    def detect(image: Path) -> Tensor:
        _, pixels, original, *_ = next(iter(dataloaders.LoadImages(str(image), img_size=imgsz, stride=model.stride)))
        x = torch.from_numpy(pixels).float()[None] / 255
        boxes = general.non_max_suppression(model(x))[0]
        boxes[:, :4] = general.scale_boxes(x.shape[2:], boxes[:, :4], original.shape)
        return boxes

    return detect


def _yolov5_map(checkpoint: Path, data: Path, imgsz: int, repo: Path | None) -> tuple[float, float]:
    (general,) = tree_modules(repo, "utils.general")
    teach_files(general)
    (val,) = tree_modules(repo, "val")
    options = {"imgsz": imgsz, "batch_size": 1, "device": "cpu", "workers": 0, "half": False, "plots": False}
    with TemporaryDirectory() as folder, unfused():
        figures = val.run(str(data), weights=str(checkpoint), project=folder, **options)[0]
    return float(figures[2]), float(figures[3])
