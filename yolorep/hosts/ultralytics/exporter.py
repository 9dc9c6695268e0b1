"""Export a checkpoint of ultralytics to ONNX in float32, by its own exporter."""

from __future__ import annotations

import shutil
from pathlib import Path

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

    copy = Path(shutil.copy(checkpoint, folder / f"{checkpoint.stem}.pt"))  # the exporter writes beside the checkpoint
    try:
        with quiet():
            return Path(YOLO(copy).export(format="onnx", imgsz=imgsz, simplify=False, device="cpu", verbose=False))
    except Exception as error:  # the exporter raises what its converters raise
        raise HostError(f"ultralytics cannot export {checkpoint} to ONNX: {first_line(error)}") from None
