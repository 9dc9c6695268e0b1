"""Two classifiers of ultralytics on real images: the probabilities, and the accuracy by its own validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from yolorep.errors import VerifyError, first_line
from yolorep.hosts.checkpoints import Checkpoint
from yolorep.hosts.evaluate import image_files, ultralytics_predictor, unfused

PROBABILITY = 1e-4  # the same prediction, where no probability changes by more


@dataclass(frozen=True)
class ClassReport:
    """Two classifiers on the same images. differing: images that they put into different classes."""

    images: int
    differing: int
    max_probability: float

    @property
    def ok(self) -> bool:
        return not self.differing and self.max_probability <= PROBABILITY

    def __str__(self) -> str:
        return (
            f"{self.images} images: {self.differing} are put into another class; "
            f"probabilities changed by at most {self.max_probability:.1e}"
        )


def is_classifier(checkpoint: Checkpoint) -> bool:
    """Whether it holds a classifier of ultralytics."""
    return checkpoint.host == "ultralytics" and type(checkpoint.model).__name__ == "ClassificationModel"


def compare_classes(before: Path, after: Path, images: Path, *, imgsz: int) -> ClassReport:
    """Classify every image with both checkpoints, each as it is stored: nothing is folded or fused on the way.

    images: a file or a folder.

    Raises:
        VerifyError: no image there, or the two know a different number of classes.
    """
    paths = image_files(images)
    predict = predictor(before, imgsz), predictor(after, imgsz)
    differing, changed = 0, 0.0
    for path in paths:
        a, b = predict[0](path), predict[1](path)
        if a.shape != b.shape:
            raise VerifyError(f"{before} knows {len(a)} classes, {after} {len(b)}; they cannot be compared")
        differing += int(a.argmax() != b.argmax())
        changed = max(changed, float((a - b).abs().max()))
    return ClassReport(len(paths), differing, changed)


def predictor(checkpoint: Path, imgsz: int) -> Callable[[Path], Tensor]:
    """A function from an image file to its probabilities, (classes,), by ultralytics' own preprocessing."""
    predict = ultralytics_predictor(checkpoint, imgsz)
    return lambda image: predict(image).probs.data.cpu()


def accuracy(checkpoint: Path, data: Path, *, imgsz: int) -> tuple[float, float]:
    """(top-1, top-5) of a checkpoint as it is stored, by ultralytics' own validation.

    Raises:
        VerifyError: no such folder, or nothing in it that ultralytics can validate with.
    """
    accepted = "accepted: a folder with train and val, as `yolorep split` makes it"
    if not data.is_dir():
        raise VerifyError(f"{data} is not a folder; {accepted}")
    from ultralytics import YOLO

    model = YOLO(checkpoint)
    with TemporaryDirectory() as folder, unfused():
        options = {"imgsz": imgsz, "workers": 0, "plots": False, "verbose": False}
        try:
            metrics: Any = model.val(data=str(data), project=folder, **options)
        except (OSError, RuntimeError, ValueError, LookupError) as error:  # what it raises for folders of another kind
            reason = first_line(error).rstrip(".")
            raise VerifyError(f"{data} cannot be validated with: {reason}; {accepted}") from None
    return float(metrics.top1), float(metrics.top5)
