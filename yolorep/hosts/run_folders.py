"""Remove the folder that a host made for a run, where the run is refused before it has begun.

Both hosts make the folder first and check most arguments after.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from yolorep.errors import YolorepError

# What the hosts write before the first epoch, batch or image. A folder that holds more is kept.
STUBS = ("args.yaml", "opt.yaml", "hyp.yaml", "labels.jpg", "labels_correlogram.jpg", "events.out.tfevents.*")
_new: list[Path] = []  # folders that were not there when a host chose them, each after its parents


def noted(choose: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a host's function that chooses the folder of a run, and note which folders will be new."""
    folder = choose(*args, **kwargs)
    path = Path(folder).absolute()
    with suppress(OSError):  # a name that is too long
        _new.extend(part for part in reversed((path, *path.parents)) if not os.path.lexists(part))
    return folder


@contextmanager
def cleared_when_refused() -> Iterator[None]:
    """Remove a run's new folders that hold only stubs if the block ends in an error of yolorep or the system."""
    _new.clear()
    try:
        yield
    except (YolorepError, OSError):
        clear()
        raise


def clear() -> None:
    """Remove the noted folders, except those that hold more than stubs: files of a run that has not trained yet."""
    for folder in reversed(_new):
        with suppress(OSError):
            if folder.is_dir() and not folder.is_symlink() and all(_is_stub(path) for path in folder.rglob("*")):
                shutil.rmtree(folder)
    _new.clear()


def _is_stub(path: Path) -> bool:
    return path.is_dir() or any(path.match(stub) for stub in STUBS)
