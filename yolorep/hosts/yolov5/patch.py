"""Patch a YOLOv5 tree: one line in `models/yolo.py` imports yolorep, so that the tree's own scripts know rep models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from yolorep.atomic_files import written_whole
from yolorep.errors import HostError
from yolorep.paths import is_file

TARGET = "models/yolo.py"
IMPORT = re.compile(rb"\s*(import|from)\s+yolorep\b")


@dataclass(frozen=True)
class Patch:
    """The one hunk of a shipped patch: the lines around the change, and the line that it adds among them.

    before, after: lines without their ends. place: index of the added line in `after`.
    """

    before: tuple[bytes, ...]
    after: tuple[bytes, ...]
    place: int


def run(directory: Path, *, check: bool = False, revert: bool = False) -> str:
    """Patch the tree in `directory`, or only say whether it is patched; return the sentence that says what was done.

    check: leave the file as it is. revert: take the patch out again. The file is replaced as a whole or not at all.

    Raises:
        HostError: `directory` is not a YOLOv5 tree, no patch fits it, or its file cannot be read or written.
    """
    file = (directory / TARGET).resolve() if is_file(directory / TARGET) else None
    if file is None:
        raise HostError(f"{directory} is not a YOLOv5 tree (no {TARGET}); accepted: a checkout, or the yolov5 package")
    lines = _read(file)
    applied = _find(lines, "after")
    if applied is None and _imported_by_hand(lines):
        return f"{directory} is patched, by a line of its owner's{'' if check else '; nothing to do'}"
    fitting = _find(lines, "before")
    if applied is None and fitting is None:
        raise HostError(
            f"no patch fits {file}, which does not end as in YOLOv5 v5.0 to v7.0, master or the yolov5 package; "
            "add the line 'import yolorep' above its 'if __name__' by hand"
        )
    if check:
        return f"{directory} is {'not ' * (applied is None)}patched"
    if revert and applied is not None:
        patch, start = applied
        del lines[start + patch.place]
        _write(file, lines)
        return f"{directory}: reverted {TARGET}"
    if not revert and fitting is not None:
        patch, start = fitting
        end = lines[start][len(lines[start].rstrip(b"\r\n")) :]
        lines.insert(start + patch.place, patch.after[patch.place] + end)
        _write(file, lines)
        return f"{directory}: patched {TARGET}"
    return f"{directory} is {'not patched' if revert else 'already patched'}; nothing to do"


def shipped() -> Iterator[Patch]:
    """Yield the patches that yolorep ships, one for each way in which `models/yolo.py` ends."""
    package = Path(str(files("yolorep")))
    folder = next(f for f in (package / "patches", package.parent / "patches") if f.is_dir())
    for path in sorted(folder.glob("*.patch")):
        text = path.read_bytes().splitlines()
        start = next(index for index, line in enumerate(text) if line.startswith(b"@@"))
        hunk = [(line[:1], line[1:]) for line in text[start + 1 :]]
        before = tuple(line for sign, line in hunk if sign != b"+")
        after = tuple(line for sign, line in hunk if sign != b"-")
        yield Patch(before, after, next(index for index, (sign, _) in enumerate(hunk) if sign == b"+"))


def _find(lines: list[bytes], side: str) -> tuple[Patch, int] | None:
    """The patch whose lines, before or after it is applied, stand in `lines`, and the index where they begin.

    An owner's edits move the lines away from where the patch file says that they are.
    """
    bare = [line.rstrip(b"\r\n") for line in lines]
    for patch in shipped():
        wanted = list(getattr(patch, side))
        for index in range(len(bare) - len(wanted) + 1):
            if bare[index : index + len(wanted)] == wanted:
                return patch, index
    return None


def _imported_by_hand(lines: list[bytes]) -> bool:
    return any(IMPORT.match(line) for line in lines)


def _read(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise HostError(f"{file} cannot be read: {error.strerror}") from None


def _write(file: Path, lines: list[bytes]) -> None:
    try:
        with written_whole(file, "wb") as stream:
            stream.writelines(lines)
    except OSError as error:
        raise HostError(f"{file} cannot be written: {error.strerror}") from None
