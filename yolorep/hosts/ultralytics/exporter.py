"""Export a checkpoint of ultralytics to a float model of another runtime, by its own exporter."""

from __future__ import annotations

import shutil
from pathlib import Path

from yolorep.errors import HostError, first_line
from yolorep.hosts.ultralytics.build import quiet


def export_float(checkpoint: Path, folder: Path, imgsz: int, format: str = "onnx", repo: Path | None = None) -> Path:
    """Write the float32 model of `format` for square images of `imgsz` pixels into `folder`; return its path.

    repo: not used; it is there so that the exporters of all hosts are called alike.

    Raises:
        HostError: the exporter fails.
    """
    from ultralytics import YOLO

    # A copy, since the exporter writes beside the checkpoint.
    copy = Path(shutil.copy(checkpoint, folder / f"{checkpoint.stem}.pt"))
    try:
        with quiet():
            return Path(YOLO(copy).export(format=format, imgsz=imgsz, simplify=False, device="cpu", verbose=False))
    except Exception as error:  # the exporter raises what its converters raise
        raise HostError(f"ultralytics cannot export {checkpoint} to {format}: {first_line(error)}") from None
