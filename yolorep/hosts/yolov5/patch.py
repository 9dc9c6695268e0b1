"""Patch a YOLOv5 tree: one line in `models/yolo.py` imports yolorep, so that the tree's own scripts know rep models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import patch_ng

from yolorep.errors import HostError

TARGET = "models/yolo.py"


def run(directory: Path, *, check: bool = False, revert: bool = False) -> str:
    """Patch the tree in `directory`, take the patch out again (revert), or do neither (check); return what was found.

    The file is replaced as a whole or not at all, and where there is nothing to do nothing is done.

    Raises:
        HostError: no YOLOv5 tree there, one that no patch fits, or a file that cannot be written.
    """
    file = (directory / TARGET).resolve()
    if not file.is_file():
        raise HostError(f"{directory} is not a YOLOv5 tree (no {TARGET}); accepted: a checkout, or the yolov5 package")
    lines = file.read_bytes().splitlines()
    applied, fitting = _match(lines, b"+"), _match(lines, b"-")
    if applied is None and fitting is None:
        raise HostError(
            f"no patch fits {file}, which does not end as in YOLOv5 v6.2, v7.0, master or the yolov5 package; "
            "add the line 'import yolorep' above its 'if __name__' by hand"
        )
    if check:
        return f"{directory} is {'not ' * (applied is None)}patched"
    if revert and applied is not None:
        _rewrite(file, *applied, revert=True)
        return f"{directory}: reverted {TARGET}"
    if not revert and fitting is not None:
        _rewrite(file, *fitting, revert=False)
        return f"{directory}: patched {TARGET}"
    return f"{directory} is {'not patched' if revert else 'already patched'}; nothing to do"


def shipped() -> Iterator[patch_ng.PatchSet]:
    """The patches that yolorep ships, one for each way in which `models/yolo.py` ends; each has a single hunk."""
    package = Path(str(files("yolorep")))
    folder = next(f for f in (package / "patches", package.parent / "patches") if f.is_dir())
    for path in sorted(folder.glob("*.patch")):
        yield patch_ng.fromfile(str(path))


def _rewrite(file: Path, patch: patch_ng.PatchSet, place: int, *, revert: bool) -> None:
    """Apply or revert `patch` at line index `place` of a copy beside `file`, and put the copy in its place."""
    # A tree that its owner has edited has the hunk's lines, but not at the hunk's line number.
    hunk = patch.items[0].hunks[0]
    hunk.startsrc = hunk.starttgt = place + 1
    try:
        with TemporaryDirectory(dir=file.parent) as folder:
            copy = Path(folder) / TARGET
            copy.parent.mkdir()
            shutil.copy2(file, copy)
            done = patch.revert(strip=1, root=folder) if revert else patch.apply(strip=1, root=folder)
            if not done or copy.read_bytes() == file.read_bytes():
                raise HostError(f"the patch does not apply to {file}, which is left as it was")
            os.replace(copy, file)
    except OSError as error:
        raise HostError(f"{file} cannot be written: {error.strerror}") from None


def _match(lines: list[bytes], sign: bytes) -> tuple[patch_ng.PatchSet, int] | None:
    """The patch whose lines, before ('-') or after ('+') it is applied, stand in `lines`, and at which index."""
    for patch in shipped():
        wanted = [line[1:].rstrip(b"\r\n") for line in patch.items[0].hunks[0].text if line[:1] in (b" ", sign)]
        for index in range(len(lines) - len(wanted) + 1):
            if lines[index : index + len(wanted)] == wanted:
                return patch, index
    return None
