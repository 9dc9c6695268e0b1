"""The demo's folder: every file that the demo makes is listed before it is made, and nothing else is ever removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil

from yolorep.errors import UsageError

DEFAULT = Path("yolorep-demo")
MARKER = ".yolorep-demo.json"  # there while the demo runs, and after it was killed
UNFINISHED = f"{MARKER}.unfinished"


@dataclass
class Workspace:
    """A folder that a running demo has claimed.

    folder: where the files go. made_folder: the demo made the folder itself. files: relative paths of the files that
    the demo makes. trees: relative paths of folders that are its alone, with unique names.
    """

    folder: Path
    made_folder: bool
    files: list[str] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)

    @classmethod
    def claim(cls, out: Path | None) -> Workspace:
        """Claim `out`, by default `yolorep-demo`, numbered if that name is taken.

        What a killed demo left in the folder is removed first.

        Raises:
            UsageError: `out` is not a new or empty folder, or cannot be made.
        """
        if out is None:
            out = next(path for path in _numbered(DEFAULT) if not path.exists() or _abandoned(path))
        if _abandoned(out):
            _read(out).remove()
        if out.is_dir():
            (out / UNFINISHED).unlink(missing_ok=True)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is not an empty folder; accepted for --out: a new or an empty one")
        new = not out.exists()
        try:
            out.mkdir(parents=True, exist_ok=True)
            space = cls(out, new)
            space._record()
        except OSError as error:
            raise UsageError(f"{out} cannot be made: {error.strerror}") from None
        return space

    def will_make(self, paths: Iterable[Path], *, trees: Iterable[Path] = ()) -> None:
        """List files before they are made. trees: folders with unique names, whose whole content is the demo's.

        Raises:
            UsageError: one of them is there already, so somebody else made it.
        """
        paths, trees = list(paths), list(trees)
        taken = next((path for path in (*paths, *trees) if path.exists()), None)
        if taken is not None:
            raise UsageError(f"{taken} appeared while the demo was running; it is left as it is")
        self.files += [str(path.relative_to(self.folder)) for path in paths]
        self.trees += [str(path.relative_to(self.folder)) for path in trees]
        self._record()

    def finish(self) -> None:
        """Remove the marker and the trees, and keep the files."""
        for tree in self.trees:
            shutil.rmtree(self.folder / tree, ignore_errors=True)
        (self.folder / MARKER).unlink(missing_ok=True)

    def remove(self) -> list[Path]:
        """Remove the demo's files; return the other files that are still in the folder."""
        for tree in self.trees:
            shutil.rmtree(self.folder / tree, ignore_errors=True)
        for name in self.files:
            (self.folder / name).unlink(missing_ok=True)
        parents = {parent for name in self.files for parent in Path(name).parents if parent != Path(".")}
        for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
            _remove_if_empty(self.folder / parent)
        (self.folder / MARKER).unlink(missing_ok=True)
        if self.made_folder:
            _remove_if_empty(self.folder)
        return [path for path in self.folder.rglob("*") if not path.is_dir()] if self.folder.exists() else []

    def _record(self) -> None:
        process = psutil.Process()
        content = {"pid": process.pid, "started": process.create_time(), "made_folder": self.made_folder}
        text = json.dumps({**content, "files": self.files, "trees": self.trees})
        unfinished = self.folder / UNFINISHED
        unfinished.write_text(text)
        os.replace(unfinished, self.folder / MARKER)


def _read(folder: Path) -> Workspace:
    content = json.loads((folder / MARKER).read_text())
    # Nothing outside the folder is removed, even if the file names it.
    names = [name for name in content["files"] if not Path(name).is_absolute() and ".." not in Path(name).parts]
    trees = [name for name in content["trees"] if Path(name).name == name and name.startswith(".settings-")]
    return Workspace(folder, bool(content["made_folder"]), names, trees)


def _abandoned(folder: Path) -> bool:
    """Return whether a demo that is not running any more left its marker in the folder."""
    try:
        content = json.loads((folder / MARKER).read_text())
        if not {"files", "trees", "made_folder"} <= content.keys():
            return False
        process = psutil.Process(content["pid"])
        return abs(process.create_time() - content["started"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, psutil.Error):
        return False


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, not there, or the current directory of a process
        folder.rmdir()


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")
