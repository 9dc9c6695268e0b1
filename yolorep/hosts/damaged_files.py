"""Recognize checkpoint files that are cut short or damaged before a host reads them.

The hosts write in place, so that a run that is killed while it writes leaves half a file.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

from yolorep.errors import CheckpointError
from yolorep.paths import is_file

ZIP = b"PK"  # how a file of torch.save begins since torch 1.6
PICKLE = b"\x80"  # how it began before


def check_whole(path: Path) -> None:
    """Check that a `.pt` file is complete. Files of other kinds are left to the host.

    Raises:
        CheckpointError: the file cannot be read, is empty, cut short, of another kind, or differs from its checksums.
    """
    if path.suffix != ".pt" or not is_file(path):
        return
    try:
        with path.open("rb") as file:
            start = file.read(len(ZIP))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not start or (start == ZIP and not is_zipfile(path)):
        raise CheckpointError(
            f"{path} is cut short, as by a run that was killed while it wrote it; "
            "accepted: a whole checkpoint, such as best.pt beside it or one kept by save_period"
        )
    if start == ZIP:
        _check_sums(path)
    elif not start.startswith(PICKLE):
        raise CheckpointError(f"{path} is not a PyTorch checkpoint; accepted: a file written by torch.save")


def _check_sums(path: Path) -> None:
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except (BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        damaged = str(error)
    if damaged:
        raise CheckpointError(
            f"{path} is damaged ({damaged} does not match its checksum); accepted: an intact copy of the file"
        )
