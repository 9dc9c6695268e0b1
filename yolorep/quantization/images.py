"""Calibration images: which files of the user's data set, and how a detector reads them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolorep.errors import UsageError
from yolorep.hosts.evaluate import IMAGES
from yolorep.hosts.shared_hooks import read_yaml

FEW = 100  # fewer calibration images than this are told of
SEED = 0
Array = np.ndarray[Any, Any]


def calibration_files(data: Path, count: int) -> list[Path]:
    """Return up to `count` training images of a data set, evenly drawn, the same ones each time.

    data: a data YAML with `train:`, or a classifier's folder with `train/`.

    Raises:
        UsageError: the data set, or its training images, cannot be found.
    """
    folders = [data / "train"] if data.is_dir() else _training_folders(data)
    files = [file for folder in folders for file in _images(folder)]
    if not files:
        where = ", ".join(map(str, folders))
        raise UsageError(f"{data}: no calibration images in {where}; accepted: a data set whose train: holds images")
    return sorted(random.Random(SEED).sample(files, min(count, len(files))))


def class_names(data: Path) -> list[str]:
    """Return the class names of a data YAML in the order of their indices, or the folder names under `train/`."""
    if data.is_dir():
        return sorted(folder.name for folder in (data / "train").iterdir() if folder.is_dir())
    names = read_yaml(data, "a data YAML").get("names") or []
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def letterboxed(file: Path, side: int) -> Array:
    """Return an image as a detector takes it: float32 (1, 3, side, side), RGB, 0 to 1, padded to a square.

    Raises:
        UsageError: the file is not an image that OpenCV reads.
    """
    import cv2
    from ultralytics.data.augment import LetterBox

    pixels = cv2.imread(str(file))
    if pixels is None:
        raise UsageError(f"{file} cannot be read as an image")
    square: Any = LetterBox((side, side), auto=False)(image=pixels)
    return np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1)[None]).astype(np.float32) / 255


def _training_folders(data: Path) -> list[Path]:
    if not data.is_file():
        raise UsageError(f"{data} does not exist; accepted: a data.yaml, or a classifier's folder with train/")
    content = read_yaml(data, "a data YAML: accepted is a mapping with train, val and names")
    root = (data.parent / str(content.get("path") or ".")).resolve()
    train = content.get("train") or content.get("val")
    if not train:
        raise UsageError(f"{data} has no train: entry; accepted: a data YAML with train, val and names")
    return [root / str(entry) for entry in (train if isinstance(train, list) else [train])]


def _images(place: Path) -> Iterator[Path]:
    """Yield the image files below a folder, or those that a text file lists."""
    if place.suffix == ".txt" and place.is_file():
        lines = (line.strip() for line in place.read_text(encoding="utf-8").splitlines())
        files = [place.parent / line for line in lines if line]
        yield from (file for file in files if file.is_file())
    elif place.is_dir():
        yield from sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGES)
