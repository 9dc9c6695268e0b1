"""Training for the demo: ultralytics' own trainer with its output in a file, progress step by step, and a time plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from yolorep.hosts.ultralytics.cpu_threads import available_cores, use_threads

REP, STOCK = "yolov5n-rep.yaml", "yolov5n.yaml"
BATCH = 16
# A short schedule for easy images: one optimizer step per batch, a short warm-up, no augmentation but flips.
SCHEDULE: dict[str, Any] = {
    "batch": BATCH,
    "nbs": BATCH,
    "optimizer": "AdamW",
    "lr0": 0.003,
    "warmup_epochs": 1,
    "flipud": 0.5,
    **dict.fromkeys(("mosaic", "close_mosaic", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "erasing"), 0),
}
# No plots, no messages, and nothing outside the folder or the machine.
QUIET: dict[str, Any] = {
    "verbose": False,
    "plots": False,
    "amp": False,
    "deterministic": False,
    "cache": "ram",
    "workers": 0,
    "exist_ok": True,
}
INTEGRATIONS = ("clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")
PROBE_STEPS = 2


@dataclass(frozen=True)
class Epoch:
    """Metrics of the validation after one epoch."""

    map50: float
    map50_95: float


@dataclass(frozen=True)
class Trained:
    """A finished training. checkpoint: weights of the best epoch. epochs: metrics of every epoch. seconds: duration."""

    checkpoint: Path
    epochs: list[Epoch]
    seconds: float

    @property
    def best(self) -> Epoch:
        """Return the metrics of the epoch that the checkpoint is from: ultralytics selects by mAP50-95."""
        return max(self.epochs, key=lambda epoch: epoch.map50_95)


def files(folder: Path) -> list[Path]:
    """Return every file that ultralytics writes to the folder of a training with these options."""
    return [folder / name for name in ("args.yaml", "results.csv", "results.png", "weights/best.pt", "weights/last.pt")]


def best_device() -> str:
    """Return ultralytics' name of the first GPU, else 'cpu'."""
    return "0" if torch.cuda.is_available() else "cpu"


def prepare(settings: Path) -> None:
    """Give ultralytics, not imported yet, its own settings folder, in which every experiment tracker is off."""
    from yolorep.hosts.offline import go_offline

    os.environ |= {"YOLO_CONFIG_DIR": str(settings.resolve()), "YOLO_VERBOSE": "false"}
    go_offline()
    from ultralytics import settings as store

    store.update({name: False for name in INTEGRATIONS if name in store})


@contextmanager
def kept(log: Path) -> Iterator[None]:
    """Redirect everything that is printed to a file."""
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def choose_threads() -> int:
    """Set and return the number of CPU threads: all cores, unless a convolution is faster with fewer.

    On a machine that is busy or has hyper-threads, threads that wait for each other can be many times slower.
    """
    cores = min(8, available_cores())
    x, conv = torch.rand(BATCH, 64, 20, 20), nn.Conv2d(64, 64, 3, padding=1)
    seconds: dict[int, list[float]] = {threads: [] for threads in sorted({1, max(cores // 2, 1), cores})}
    with torch.no_grad():
        for _ in range(4):  # the first round warms up
            for threads, samples in seconds.items():
                torch.set_num_threads(threads)
                begin = perf_counter()
                for _ in range(10):
                    conv(x)
                samples.append(perf_counter() - begin)
    best = min(seconds, key=lambda threads: median(seconds[threads][1:]))
    torch.set_num_threads(best)
    use_threads(best)
    return best


def step_seconds(models: Sequence[nn.Module], side: int, device: str) -> list[float]:
    """Measure a training step of ultralytics detectors on noise, interleaved; returns seconds in their order."""
    place = torch.device("cpu" if device == "cpu" else f"cuda:{device}")
    steps = [_step(model, side, place) for model in models]
    samples = [[_seconds(step, place) for step in steps] for _ in range(1 + PROBE_STEPS)]
    return [median(column[1:]) for column in zip(*samples, strict=True)]  # the first one warms up


def _seconds(step: Callable[[], object], place: torch.device) -> float:
    begin = perf_counter()
    step()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return perf_counter() - begin


def _step(model: nn.Module, side: int, place: torch.device) -> Callable[[], None]:
    """Return a training step: forward, the host's loss, backward and optimizer."""
    from ultralytics.cfg import get_cfg

    trained: Any = model.to(place).train().requires_grad_(True)
    trained.args = get_cfg()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    boxes = 4 * BATCH
    batch = {
        "img": torch.rand(BATCH, 3, side, side),
        "cls": torch.zeros(boxes, 1),
        "bboxes": torch.rand(boxes, 4) * 0.3 + 0.3,
        "batch_idx": torch.arange(BATCH).repeat_interleave(4).float(),
    }
    batch = {name: value.to(place) for name, value in batch.items()}

    def step() -> None:
        optimizer.zero_grad()
        trained(batch)[0].sum().backward()
        optimizer.step()

    return step


def train(
    model: str,
    data: Path,
    out: Path,
    *,
    epochs: int,
    imgsz: int,
    device: str = "cpu",
    begin: Callable[[int], object],
    step: Callable[[], object],
    epoch: Callable[[Epoch], object],
) -> Trained:
    """Train a model YAML from scratch on a data.yaml; the host's files go to `out`.

    device: ultralytics' name of it. begin: called with the number of steps. step: called after each step. epoch: called
    with the metrics of each epoch.
    """
    from ultralytics import YOLO

    curve: list[Epoch] = []

    def validated(trainer: Any) -> None:
        if len(curve) < epochs:  # the host reports the best epoch once more at the end
            curve.append(Epoch(*(float(trainer.metrics[f"metrics/{name}(B)"]) for name in ("mAP50", "mAP50-95"))))
            epoch(curve[-1])

    yolo = YOLO(model)
    yolo.add_callback("on_train_start", lambda trainer: begin(trainer.epochs * len(trainer.train_loader)))
    yolo.add_callback("on_train_batch_end", lambda trainer: step())
    yolo.add_callback("on_fit_epoch_end", validated)
    folder = out.resolve()  # ultralytics puts a relative one below its own runs/
    options = {"epochs": epochs, "imgsz": imgsz, "project": str(folder.parent), "name": out.name, "device": device}
    start = perf_counter()
    yolo.train(data=str(data), **options, **SCHEDULE, **QUIET)
    return Trained(out / "weights" / "best.pt", curve, perf_counter() - start)
