"""Write files so that a reader, a crash or a full disk never meets half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import IO, Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".unfinished"
STARTED = ".started"  # a file that its writer is about to lock
SETTLED = 10.0  # seconds after which it was killed before that


@contextmanager
def written_whole(path: Path, mode: str = "w", *, overwrite: bool = True, **options: Any) -> Iterator[IO[Any]]:
    """Open a new file that takes the place of `path` when the block ends without an exception.

    The content is on the disk (fsync) before the name is. What earlier writers of `path` left behind when they were
    killed is removed first. mode: "w" or "wb". overwrite: False never replaces a file, not even one that appears in
    the meantime. options: arguments of `open`, such as encoding.

    Raises:
        FileExistsError: `path` exists and is not to be overwritten.
        OSError: it cannot be written; the file that was there is as it was.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with written_whole(Path(folder) / "greeting.txt", encoding="utf-8") as file:
        ...         _ = file.write("hello")
        ...     (Path(folder) / "greeting.txt").read_text()
        'hello'
    """
    path = Path(os.path.realpath(path))  # through a symbolic link to the file that it names
    clear_unfinished(path)
    unfinished = path.with_name(f".{path.name[:100]}.{uuid4().hex}{SUFFIX}")
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    started = unfinished if os.name == "nt" else unfinished.with_suffix(STARTED)  # Windows renames no open file
    try:
        with started.open(mode.replace("w", "x"), **options) as file:
            _lock(file)
            if started != unfinished:
                os.rename(started, unfinished)  # a file of this name is locked from the beginning
            yield file
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):  # there is no file yet, or this user may not set its permissions
                os.chmod(unfinished, path.stat().st_mode & 0o7777)
            if os.name == "nt":
                file.close()
            _publish(unfinished, path, overwrite=overwrite)
    finally:
        for left in (started, unfinished):
            with suppress(OSError):
                left.unlink(missing_ok=True)


def clear_unfinished(path: Path) -> None:
    """Remove what writers of `path` left behind when they were killed; the file of a writer at work stays."""
    prefix = f".{path.name[:100]}."
    with suppress(OSError):
        for left in path.parent.iterdir():
            if left.name.startswith(prefix) and left.suffix in (SUFFIX, STARTED) and not _at_work(left):
                with suppress(OSError):
                    left.unlink()


def _publish(unfinished: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(unfinished, path)
    elif os.name == "nt":
        os.rename(unfinished, path)  # refuses to replace
    else:
        try:
            os.link(unfinished, path)  # refuses to replace, unlike rename
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if path.exists():
                raise FileExistsError(f"{path} exists") from None
            os.replace(unfinished, path)
    if os.name != "nt":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # not every file system syncs a folder
            os.fsync(folder)
        os.close(folder)


def _lock(file: IO[Any]) -> None:
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _at_work(unfinished: Path) -> bool:
    """Return whether the process that began this file still has it open."""
    if fcntl is None:
        return False
    try:
        if unfinished.suffix == STARTED and time() - unfinished.stat().st_mtime < SETTLED:
            return True
        with unfinished.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
