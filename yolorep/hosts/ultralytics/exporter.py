"""Export a checkpoint of ultralytics to ONNX in float32, by its own exporter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from yolorep.errors import HostError, first_line
from yolorep.hosts.ultralytics.build import quiet

SIDECAR = "metadata.yaml"  # what the host reads beside an OpenVINO model


def export_onnx(checkpoint: Path, folder: Path, imgsz: int, repo: Path | None = None) -> Path:
    """Write the ONNX model for square images of `imgsz` pixels into `folder`; return its path.

    repo: not used; the exporters of all hosts take it.

    Raises:
        HostError: the exporter fails.
    """
    from ultralytics import YOLO

    copy = shutil.copy(checkpoint, folder / f"{checkpoint.stem}.pt")  # the exporter writes beside the checkpoint
    return export_loaded(YOLO(copy), checkpoint, imgsz)


def export_loaded(yolo: Any, checkpoint: Path, imgsz: int) -> Path:
    """Write the ONNX model of a loaded `YOLO` beside the file that it was loaded from; return its path.

    checkpoint: the file that the message of an error names.

    Raises:
        HostError: the exporter fails.
    """
    try:
        with quiet():
            return Path(yolo.export(format="onnx", imgsz=imgsz, simplify=False, device="cpu", verbose=False))
    except Exception as error:  # the exporter raises what its converters raise
        raise HostError(f"ultralytics cannot export {checkpoint} to ONNX: {first_line(error)}") from None
