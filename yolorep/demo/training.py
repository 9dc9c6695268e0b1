"""Training for the demo: ultralytics' own trainer, its talk kept in a file, its progress told step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "yolov5n-rep.yaml"
# A short schedule for easy images: one optimizer step a batch, no warm-up to speak of, no augmentation but flips.
SCHEDULE: dict[str, Any] = {
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.003,
    "warmup_epochs": 1,
    "flipud": 0.5,
    **dict.fromkeys(("mosaic", "close_mosaic", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "erasing"), 0),
}
# Nothing that is not wanted, and nothing that reaches beyond the folder or the machine.
QUIET: dict[str, Any] = {
    "verbose": False,
    "plots": False,
    "amp": False,
    "deterministic": False,
    "cache": "ram",
    "workers": 0,
    "exist_ok": True,
    "device": "cpu",
}
INTEGRATIONS = ("clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")


@dataclass(frozen=True)
class Epoch:
    """Figures of the validation after one epoch."""

    map50: float
    map50_95: float


@dataclass(frozen=True)
class Trained:
    """A finished training: the checkpoint with the best epoch's weights, and every epoch's figures."""

    checkpoint: Path
    epochs: list[Epoch]


def prepare(settings: Path) -> None:
    """Give ultralytics, not imported yet, its own settings folder, in which no experiment tracker is on."""
    from yolorep.hosts.offline import go_offline

    os.environ |= {"YOLO_CONFIG_DIR": str(settings.resolve()), "YOLO_VERBOSE": "false"}
    go_offline()
    from ultralytics import settings as store

    store.update({name: False for name in INTEGRATIONS if name in store})


@contextmanager
def kept(log: Path) -> Iterator[None]:
    """What is printed meanwhile goes to a file."""
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def train(
    data: Path,
    out: Path,
    *,
    epochs: int,
    imgsz: int,
    begin: Callable[[int], object],
    step: Callable[[], object],
    epoch: Callable[[Epoch], object],
) -> Trained:
    """Train `MODEL` from scratch on a data.yaml; the host's files go to `out`.

    begin: told the number of steps. step: called after each. epoch: told the figures of each.
    """
    from ultralytics import YOLO

    curve: list[Epoch] = []

    def validated(trainer: Any) -> None:
        if len(curve) < epochs:  # the host tells the best epoch once more at the end
            curve.append(Epoch(*(float(trainer.metrics[f"metrics/{name}(B)"]) for name in ("mAP50", "mAP50-95"))))
            epoch(curve[-1])

    model = YOLO(MODEL)
    model.add_callback("on_train_start", lambda trainer: begin(trainer.epochs * len(trainer.train_loader)))
    model.add_callback("on_train_batch_end", lambda trainer: step())
    model.add_callback("on_fit_epoch_end", validated)
    folder = out.resolve()  # the host puts a relative one below its own runs/
    model.train(
        data=str(data), epochs=epochs, imgsz=imgsz, project=str(folder.parent), name=out.name, **SCHEDULE, **QUIET
    )
    return Trained(out / "weights" / "best.pt", curve)
