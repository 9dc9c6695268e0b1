"""Split images in one folder per class into train and val, as classifiers are trained from."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torchvision.datasets import ImageFolder

from yolorep.errors import UsageError, first_line

LAYOUT = "accepted: a folder that holds a folder of images for each class"


class Counts(NamedTuple):
    """Images of one class in each part."""

    train: int
    val: int


def split_folder(source: Path, out: Path, *, val: float = 0.2, seed: int = 0, link: bool = False) -> dict[str, Counts]:
    """Write `out`/train/CLASS and `out`/val/CLASS with the images of `source`/CLASS; all of it or nothing.

    val: share of each class to validate with, 0 to 1; each part gets at least one image of each class. seed: the same
    number gives the same split. link: symbolic links to the images instead of copies.

    Returns:
        The number of images in both parts, by class.

    Raises:
        UsageError: `source` is not one folder a class, two classes and two images of each at least, `out` exists, or
            an image cannot be read or written.
    """
    if not 0 < val < 1:
        raise UsageError(f"--val {val:g} leaves a part empty; accepted: a share between 0 and 1, such as 0.2")
    try:
        images = class_images(source)
        _check_target(source, out)
        return _write(images, source, out, val=val, seed=seed, link=link)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(f"{source} cannot be split into {out}: {error.strerror or error}{where}") from None


def class_images(source: Path) -> dict[str, list[Path]]:
    """Return the images of each class, sorted.

    Raises:
        UsageError: there are no two classes with two images each.
    """
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder; {LAYOUT}")
    try:
        found = ImageFolder(str(source))
    except FileNotFoundError as error:  # no folder, or one without images
        raise UsageError(f"{first_line(error)} {LAYOUT}") from None
    if {"train", "val"} <= set(found.classes):
        raise UsageError(f"{source} is split already, into {', '.join(found.classes)}; {LAYOUT}")
    if len(found.classes) < 2:
        raise UsageError(f"{source} has one class, {found.classes[0]!r}; accepted: two or more")
    images: dict[str, list[Path]] = {name: [] for name in found.classes}
    for file, index in found.samples:
        images[found.classes[index]].append(Path(file))
    for name, files in images.items():
        if len(files) < 2:
            raise UsageError(f"{source / name} has one image; accepted: two or more, for train and for val")
    return {name: sorted(files) for name, files in images.items()}


def _check_target(source: Path, out: Path) -> None:
    if out.exists():
        raise UsageError(f"{out} exists; choose the name of a new folder")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder; create it first")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} is inside {source}, where it would be one more class; choose another place")


def _write(
    images: dict[str, list[Path]], source: Path, out: Path, *, val: float, seed: int, link: bool
) -> dict[str, Counts]:
    counts = {}
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        staged = Path(folder) / out.name
        for name, files in images.items():
            random.Random(f"{seed} {name}").shuffle(files)
            count = min(max(round(len(files) * val), 1), len(files) - 1)
            counts[name] = Counts(len(files) - count, count)
            for part, chosen in (("val", files[:count]), ("train", files[count:])):
                for file in chosen:
                    _place(file, staged / part / file.relative_to(source), link=link)
        os.rename(staged, out)
    return counts


def _place(file: Path, target: Path, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(file.resolve())
    else:
        shutil.copy2(file, target)
