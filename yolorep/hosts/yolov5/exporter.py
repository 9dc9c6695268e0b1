"""Export a checkpoint of a YOLOv5 tree to ONNX in float32, by the tree's own `export.py`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path

import torch

from yolorep.errors import HostError, first_line
from yolorep.hosts.ultralytics.build import quiet
from yolorep.hosts.yolov5.compat import tree_modules

OPSET = 17  # of ONNX; one weight scale per channel needs 13
SIDECAR = "{stem}.yaml"  # metadata that a tree reads beside an OpenVINO model


def export_onnx(checkpoint: Path, folder: Path, imgsz: int, repo: Path | None = None) -> Path:
    """Write the ONNX model for square images of `imgsz` pixels into `folder`; return its path.

    repo: the tree; by default as for `yolorep yolov5`.

    Raises:
        HostError: there is no tree, or its exporter fails.
    """
    (export,) = tree_modules(repo, "export")
    copy = Path(shutil.copy(checkpoint, folder / f"{checkpoint.stem}.pt"))  # the exporter writes beside the checkpoint
    try:
        with quiet(), _traced_by_torchscript():
            written = export.run(weights=copy, imgsz=(imgsz, imgsz), include=("onnx",), opset=OPSET, device="cpu")
    except Exception as error:  # the exporter raises what its converters raise
        raise HostError(f"the tree's export.py cannot export {checkpoint} to ONNX: {first_line(error)}") from None
    if not written or not written[0]:  # a tree logs the failure and goes on
        raise HostError(f"the tree's export.py did not export {checkpoint} to ONNX; run it by hand to read its log")
    return Path(written[0])


@contextmanager
def _traced_by_torchscript() -> Iterator[None]:
    """Have `torch.onnx.export` trace by default, as it did when the trees were written.

    Since torch 2.9 the default exporter needs the package onnxscript and renames the nodes.
    """
    original = torch.onnx.export
    torch.onnx.export = wraps(original)(partial(original, dynamo=False))
    try:
        yield
    finally:
        torch.onnx.export = original
