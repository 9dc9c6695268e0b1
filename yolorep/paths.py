"""Ask about paths that a user gives, without a traceback for those that the system refuses."""

from __future__ import annotations

import errno
from pathlib import Path

from yolorep.errors import UsageError

MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EBADF}


def is_file(path: Path) -> bool:
    """Whether `path` is a file.

    Raises:
        UsageError: the system does not say: a loop of symbolic links, a name that is too long, a folder that may not
            be entered, a null byte.
    """
    return _asked(path) and path.is_file()


def is_dir(path: Path) -> bool:
    """Whether `path` is a folder.

    Raises:
        UsageError: as `is_file`.
    """
    return _asked(path) and path.is_dir()


def exists(path: Path) -> bool:
    """Whether there is anything at `path`; a dangling symbolic link is nothing.

    Raises:
        UsageError: as `is_file`.
    """
    return _asked(path)


def _asked(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        if error.errno in MISSING:
            return False
        raise UsageError(f"{path}: {error.strerror or error}; accepted: a path that can be opened") from None
    except ValueError as error:  # a null byte
        raise UsageError(f"{str(path)!r} is no path: {error}") from None
    return True
