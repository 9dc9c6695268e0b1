"""Calibration images, for statistics and ranges: which files of the user's data set, and how a detector reads them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolorep.errors import UsageError
from yolorep.hosts.evaluate import IMAGES
from yolorep.hosts.shared_hooks import read_yaml

FEW = 100  # calibration images; fewer are reported
MEASURED, BATCH = 200, 16  # images for statistics
SEED = 0
Array = np.ndarray[Any, Any]


def calibration_files(data: Path, count: int, tell: Callable[[str], None] = warnings.warn) -> list[Path]:
    """Return up to `count` training images of a data set, evenly drawn, the same ones each time.

    data: a data YAML with `train:`, or a classifier's folder with `train/`. tell: is given a sentence about listed
    images that do not exist.

    Raises:
        UsageError: the data set, or its training images, cannot be found.
    """
    files = _split(data, "train", tell)
    return sorted(random.Random(SEED).sample(files, min(count, len(files))))


def calibration_batches(data: Path, count: int, side: int) -> Iterator[Tensor]:
    """Yield up to `count` training images in batches of `BATCH`, as `letterboxed` returns them.

    Raises:
        UsageError: as `calibration_files` and `letterboxed`.
    """
    files = calibration_files(data, count)
    for first in range(0, len(files), BATCH):
        yield torch.from_numpy(np.concatenate([letterboxed(file, side) for file in files[first : first + BATCH]]))


def check_validation(data: Path) -> None:
    """Check that a data YAML names images to validate with, before anything is computed.

    Raises:
        UsageError: it does not.
    """
    if not data.is_dir():
        _split(data, "val", lambda _: None)


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


def _split(data: Path, name: str, tell: Callable[[str], None]) -> list[Path]:
    """Return the images of the split "train" or "val"."""
    places = [data / name] if data.is_dir() else _places(data, name)
    files = [file for place in places for file in _images(place, tell)]
    if not files:
        where, use = ", ".join(map(str, places)), {"train": "calibration", "val": "validation"}[name]
        raise UsageError(f"{data}: no {use} images in {where}; accepted: a data set whose {name}: holds images")
    return files


def _places(data: Path, name: str) -> list[Path]:
    """Return the folders or lists that a data YAML names for a split."""
    if not data.is_file():
        raise UsageError(f"{data} does not exist; accepted: a data.yaml, or a classifier's folder with train/")
    content = read_yaml(data, "a data YAML: accepted is a mapping with train, val and names")
    root = (data.parent / str(content.get("path") or ".")).resolve()
    entries = content.get(name)
    if not entries:
        raise UsageError(f"{data} has no {name}: entry; accepted: a data YAML with train, val and names")
    return [root / str(entry) for entry in (entries if isinstance(entries, list) else [entries])]


def _images(place: Path, tell: Callable[[str], None]) -> list[Path]:
    """Return the image files below a folder, or those that a text file lists."""
    if place.suffix == ".txt" and place.is_file():
        lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
        files = [place.parent / line for line in lines]
        missing = [file for file in files if not file.is_file()]
        if missing:
            tell(f"{len(missing)} of {len(files)} images of {place} do not exist, such as {missing[0]}")
        return [file for file in files if file.is_file()]
    if not place.is_dir():
        return []
    return sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGES)
