"""Checkpoints that are only half there: the hosts write in place, so that a run killed while it writes leaves one."""

from __future__ import annotations

from pathlib import Path
from zipfile import is_zipfile

from yolorep.errors import CheckpointError

ZIP = b"PK"  # how every file of torch.save begins since torch 1.6


def check_whole(path: Path) -> None:
    """Raises:
    CheckpointError: the file cannot be read, is empty, or is a checkpoint whose end is missing.
    """
    if path.suffix != ".pt" or not path.is_file():
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
