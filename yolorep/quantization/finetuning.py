"""Fine-tune a folded model of ultralytics with 8-bit rounding, by its own trainer, and export it in float32."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from yolorep.calibration import letterboxed
from yolorep.errors import HostError, YolorepError, first_line
from yolorep.hosts.ultralytics.exporter import export_loaded
from yolorep.quantization.rounding import round_, unround_

# The model is trained already, and learns to bear rounding: small steps, on whole images.
OPTIONS = {
    "optimizer": "AdamW",
    "lr0": 1e-4,
    "lrf": 0.1,
    "warmup_epochs": 0,
    "weight_decay": 0.0,
    "nbs": 1,  # a step at every batch
    "mosaic": 0.0,
    "amp": False,  # the rounding is to 8 bits of float32 values
    "val": False,
    "save": False,
    "plots": False,
}


def finetuned_onnx(checkpoint: Path, folder: Path, data: Path, images: Sequence[Path], imgsz: int, epochs: int) -> Path:
    """Fine-tune a deployed checkpoint for 8 bits, and write the result as float32 ONNX into `folder`; return its path.

    The batch norms are fused first, so that the weights that are rounded are those that will run. Every convolution
    reads rounded inputs and weights. The moving averages of the weights are exported without the rounding: every scheme
    quantizes them as it quantizes the weights of the checkpoint, which stays as it is.

    data: a data YAML of ultralytics. images: where the ranges of the inputs begin.

    Raises:
        HostError: the trainer fails, or the weights are no longer finite.
    """
    from ultralytics import YOLO

    yolo: Any = YOLO(shutil.copy(checkpoint, folder / f"{checkpoint.stem}-finetuned.pt"))
    arguments, network = yolo.model.args, yolo.model.float().eval()
    _fuse_(network)
    network.requires_grad_(True)
    round_(network)
    with torch.no_grad():
        for image in images:
            network(torch.from_numpy(letterboxed(image, imgsz)))
    try:
        tuned = _train(yolo, data, folder, imgsz, epochs)
    except YolorepError:
        raise
    except Exception as error:  # a trainer can fail in as many ways as the host has lines
        raise HostError(f"ultralytics cannot fine-tune {checkpoint} on {data}: {first_line(error)}") from None
    unround_(tuned)
    if not all(parameter.isfinite().all() for parameter in tuned.parameters()):
        raise HostError(f"fine-tuning {checkpoint} on {data} diverged: its weights are no longer finite")
    tuned.args = arguments  # the trainer's own are no dictionary, and the exporter reads one
    yolo.model = tuned
    return export_loaded(yolo, checkpoint, imgsz)


def _fuse_(network: Any) -> None:
    """Fuse in place as the host does before an export, but keep the branch that only the training of a head uses."""
    head = network.model[-1]
    head.fuse = lambda: None  # the host's would remove the branch
    try:
        network.fuse(verbose=False)
    finally:
        del head.fuse


def _train(yolo: Any, data: Path, folder: Path, imgsz: int, epochs: int) -> Any:
    """Train the model that `yolo` holds by the trainer of its task; return the moving average, on the CPU.

    Nothing is written but what the trainer writes into `folder`. Nothing is validated: the caller validates all models.
    """

    class Trainer(yolo._smart_load("trainer")):  # type: ignore[misc]
        def save_model(self) -> None:
            pass

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def final_eval(self) -> None:
            pass

    options = {"data": str(data), "epochs": epochs, "imgsz": imgsz, "project": str(folder), "name": "finetuning"}
    trainer = Trainer(overrides={**OPTIONS, **options, "model": str(yolo.ckpt_path), "task": yolo.task})
    trainer.model = yolo.model
    trainer.train()
    return trainer.ema.ema.cpu().float().eval()
