"""Compare two checkpoints on real images: their predictions, and the figures of the host's own validation."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from yolorep.errors import VerifyError, first_line
from yolorep.hosts.checkpoints import host_of
from yolorep.hosts.predictions import Answer, ResultReport, compare, task_of
from yolorep.paths import exists, is_dir, is_file

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
FIGURE_TOLERANCE = 1e-4  # absolute up to 1, relative above
# What the hosts raise for an image that they cannot read, and for a data set of another kind or with other classes.
REFUSALS = (AssertionError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, LookupError)


class Evaluator(Protocol):
    """A checkpoint that its host runs as stored, without folding or fusing.

    task: by ultralytics' name. imgsz: pixels.
    """

    path: Path
    task: str
    imgsz: int

    def answer(self, image: Path) -> Answer:
        """Return the predictions for an image file, by the host's own preprocessing and NMS."""

    def figures(self, data: Path) -> dict[str, float]:
        """Return the figures of the task by the host's own validation at batch 1, such as mAP50.

        At batch 1 because the NMS of both hosts drops the rest of a batch after a time limit, which a busy machine
        reaches.
        """


def evaluator(checkpoint: Path, *, imgsz: int | None = None, repo: Path | None = None) -> Evaluator:
    """Return the evaluator of a checkpoint.

    imgsz: pixels; by default 640, and 224 for a classifier. repo: the tree of a YOLOv5 checkpoint.

    Raises:
        CheckpointError, HostError: the checkpoint or its host is missing.
        VerifyError: predictions of its task cannot be compared.
    """
    made: Evaluator = _of(host_of(checkpoint)).HostEvaluator(checkpoint, imgsz, repo)
    return made


def _of(host: str) -> Any:
    """Return a host's module `evaluator`, which has a class `HostEvaluator` and a function `figures_of`."""
    return import_module(f"yolorep.hosts.{host}.evaluator")


def check_inputs(images: Path | None, data: Path | None) -> None:
    """Check that the images and the data set exist, before anything is computed.

    Raises:
        VerifyError: one of them does not. UsageError: the system refuses to open the path.
    """
    if images is not None:
        image_files(images)
    if data is not None and not exists(data):
        raise VerifyError(
            f"{data} does not exist; "
            "accepted: a folder with train and val for a classifier, else a data.yaml of the host"
        )


def exported_figures(
    path: Path, host: str, task: str, data: Path, *, imgsz: int, repo: Path | None = None
) -> dict[str, float]:
    """Return the figures of an exported model (ONNX file or OpenVINO folder) by the host's own validation.

    Raises:
        VerifyError: the host cannot validate with the data set.
    """
    try:
        figures: dict[str, float] = _of(host).figures_of(path, task, data, imgsz, repo)
    except REFUSALS as error:
        reason = first_line(error).rstrip(".")
        raise VerifyError(f"{path.name} cannot be validated with {data}: {reason}") from None
    return figures


def compare_images(before: Evaluator, after: Evaluator, images: Path) -> ResultReport:
    """Compare the predictions for every image. images: a file or a folder.

    Raises:
        VerifyError: no images, one that the host cannot read, or two tasks or numbers of classes.
    """
    if before.task != after.task:
        raise VerifyError(f"{before.path} is of task {before.task}, {after.path} of {after.task}")
    paths = image_files(images)
    return compare(task_of(before.task), ((_answer(before, path), _answer(after, path)) for path in paths))


def _answer(checkpoint: Evaluator, image: Path) -> Answer:
    try:
        return checkpoint.answer(image)
    except REFUSALS as error:
        reason = f"{checkpoint.path} has no answer to {image}: {first_line(error).rstrip('.')}"
        raise VerifyError(f"{reason}; accepted: images that the host reads, at a size that the model takes") from None


def figures(checkpoint: Evaluator, data: Path) -> dict[str, float]:
    """Return the host's own figures on a data set. data: its YAML, or a classifier's folder.

    Raises:
        VerifyError: no such file or folder, or the host cannot validate with it.
    """
    folder = checkpoint.task == "classify"
    accepted = "a folder with train and val, as `yolorep split` makes it" if folder else "a data.yaml of the host"
    if not (is_dir(data) if folder else is_file(data)):
        what = "is not a folder" if folder else "is not a file" if exists(data) else "does not exist"
        raise VerifyError(f"{data} {what}; accepted: {accepted}")
    try:
        return checkpoint.figures(data)
    except REFUSALS as error:
        reason = first_line(error).rstrip(".")
        raise VerifyError(f"{data} cannot be validated with: {reason}; accepted: {accepted}") from None


def same_figure(before: float, after: float) -> bool:
    """Return whether two values of one figure are equal within the tolerance of folding."""
    return abs(before - after) <= FIGURE_TOLERANCE * max(1.0, abs(before))


def image_files(images: Path) -> list[Path]:
    """Return the image files at a path.

    Raises:
        VerifyError: `images` is neither an image nor a folder with images.
    """
    found = [images] if is_file(images) else sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGES)
    if not found:
        raise VerifyError(f"{images} is neither an image nor a folder that holds images ({', '.join(sorted(IMAGES))})")
    return found
