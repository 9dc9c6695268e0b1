"""Split images in one folder per class into train and val, as classifiers are trained from."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from yolorep.console import say
from yolorep.errors import UsageError
from yolorep.paths import exists, is_dir, is_file

LAYOUT = "accepted: a folder that holds a folder of images for each class"
SHOWN = 5  # names of files that are left out


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
    folders = sorted(path.name for path in source.iterdir() if is_dir(path))
    left = [name for name in folders if _is_hidden(name)]
    classes = [name for name in folders if name not in left]
    if left:
        say(f"{source}: left out {', '.join(left)}")
    if not classes:
        raise UsageError(f"{source} holds no folder of a class; {LAYOUT}")
    if {"train", "val"} <= set(classes):
        raise UsageError(f"{source} is split already, into {', '.join(classes)}; {LAYOUT}")
    if len(classes) < 2:
        raise UsageError(f"{source} has one class, {classes[0]!r}; accepted: two or more")
    images = {name: _images(source / name) for name in classes}
    others = [path for path in _files(source, classes) if not _is_image(path.name) or path.parent == source]
    if others:
        names = ", ".join(str(path.relative_to(source)) for path in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        say(f"{source}: left out {names}{more}: not an image in a folder of a class")
    for name, files in images.items():
        if len(files) < 2:
            has = "one image" if files else f"no image ({', '.join(IMG_EXTENSIONS)})"
            raise UsageError(f"{source / name} has {has}; accepted: two or more, for train and for val")
    return images


def _images(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted; one that several links lead to once, and links to folders followed.

    An image that stood in train and in val would be validated by heart.

    Raises:
        UsageError: a link of an image leads nowhere.
    """
    found: dict[str, Path] = {}
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = sorted(
            name for name in folders if not _is_hidden(name) and os.path.realpath(Path(root, name)) not in seen
        )
        for name in sorted(files):
            if _is_hidden(name) or not _is_image(name):
                continue
            file = Path(root, name)
            if not is_file(file):
                raise UsageError(f"{file} is a link to a file that does not exist; remove the link")
            found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def _files(source: Path, classes: list[str]) -> list[Path]:
    """Return the files beside and in the folders of the classes, at any depth; links to folders are not followed."""
    beside = [path for path in source.iterdir() if is_file(path)]
    inside = [Path(root, name) for kind in classes for root, _, names in os.walk(source / kind) for name in names]
    return sorted(path for path in (*beside, *inside) if not any(map(_is_hidden, path.relative_to(source).parts)))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _is_hidden(name: str) -> bool:
    """Return whether a file or folder is a program's and not the user's: .ipynb_checkpoints, __MACOSX, ._0.jpg."""
    return name.startswith((".", "__"))


def _check_target(source: Path, out: Path) -> None:
    if exists(out) or out.is_symlink():
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
