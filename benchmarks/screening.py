"""Starts, blocks and placements from scratch, paired by seed from one dense initialization.

    python -m benchmarks screening --data data.yaml --arms stock silent paper even --scales 1 4 --seeds 0 1 2

YOLOv5n, AdamW, a step for every batch (`nbs` equal to the batch). All arms of a seed start from the same dense weights
and see the same images in the same order. Each run that ends is added to the record; runs that it has already are
passed over, so that a stopped screening goes on where it was. Scored by the mean of the last three epochs of the EMA.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import yolorep
from benchmarks.runner import Recorder
from yolorep.hosts.shared_hooks import read_yaml

LAST = 3  # epochs that a score is the mean of
NECK = ["model.1[0-9].*", "model.2[0-3].*"]
LR = 1.43e-3  # that of ultralytics' optimizer=auto for three classes


@dataclass(frozen=True)
class Arm:
    """block: None for stock. options: of `yolorep.expand`."""

    block: str | None = None
    start: str = "silent"
    identity: str = "auto"
    select: list[str] | None = None


ARMS = {
    "stock": Arm(),
    "silent": Arm("repvgg"),
    "paper": Arm("repvgg", "paper"),
    "even": Arm("repvgg", "even"),
    "neck": Arm("repvgg", "paper", "none", NECK),
    "orepa": Arm("orepa", "paper"),
    "acb": Arm("acb", "paper"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data", type=Path, required=True, help="data.yaml of ultralytics")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["stock", "silent", "paper", "even"])
    parser.add_argument("--scales", nargs="+", type=float, default=[4.0], help=f"multiples of the learning rate {LR}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--activation", choices=["SiLU", "ReLU"], default="SiLU")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Train every arm with every learning rate and seed that the record lacks."""
    file = recorder.path(".json")
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
    for seed in options.seeds:
        for scale in options.scales:
            for arm in options.arms:
                key = {"arm": arm, "scale": scale, "seed": seed, "activation": options.activation}
                key |= {"epochs": options.epochs, "imgsz": options.imgsz, "batch": options.batch}
                if any(key.items() <= done.items() for done in runs):
                    continue
                runs.append({**key, **trained(ARMS[arm], scale, seed, options)})
                recorder.write({"runs": runs})
                print(arm, f"lr x {scale:g}", f"seed {seed}", f"mAP50-95 {runs[-1]['map']:.4f}", flush=True)


def trained(arm: Arm, scale: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and return its scores and its curve."""
    from ultralytics import YOLO

    curve: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        start = Path(folder) / "start.pt"
        yolo: Any = YOLO(str(_network(Path(folder), options)))
        _initialize_(yolo, seed)
        if arm.block is not None:
            yolo.model = yolorep.expand(
                yolo.model, arm.block, identity=arm.identity, select=arm.select, start=arm.start
            )
        yolo.save(str(start))
        yolo = YOLO(str(start))
        yolo.add_callback("on_fit_epoch_end", _keep(curve))
        began = perf_counter()
        yolo.train(
            data=str(options.data),
            epochs=options.epochs,
            imgsz=options.imgsz,
            batch=options.batch,
            nbs=options.batch,
            optimizer="AdamW",
            lr0=LR * scale,
            momentum=0.9,
            warmup_bias_lr=0.0,
            seed=seed,
            workers=0,
            device=options.device,
            amp=False,
            plots=False,
            verbose=False,
            project=folder,
        )
        seconds = perf_counter() - began
    epochs = curve[: options.epochs]  # the last call is that of the best weights
    last = epochs[-LAST:]
    scores = {name: mean(epoch[name] for epoch in last) for name in ("map", "map50", "loss")}
    return {**scores, "best": max(epoch["map"] for epoch in epochs), "seconds": seconds, "curve": epochs}


def _network(folder: Path, options: argparse.Namespace) -> Path:
    import yaml
    from ultralytics.utils import ROOT

    content: dict[str, Any] = yaml.safe_load((ROOT / "cfg" / "models" / "v5" / "yolov5.yaml").read_text())
    content |= {"nc": len(read_yaml(options.data, "a data YAML")["names"]), "scales": {"n": content["scales"]["n"]}}
    if options.activation == "ReLU":
        content["activation"] = "torch.nn.ReLU()"
    file = folder / "network.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _initialize_(yolo: Any, seed: int) -> None:
    """Draw the weights again, so that they depend on the seed alone."""
    torch.manual_seed(seed)
    fresh = type(yolo.model)(deepcopy(yolo.model.yaml), verbose=False)
    yolo.model.load_state_dict(fresh.state_dict())


def _keep(curve: list[dict[str, Any]]) -> Callable[[Any], None]:
    def keep(trainer: Any) -> None:
        losses = trainer.tloss.values() if isinstance(trainer.tloss, dict) else trainer.tloss
        curve.append(
            {
                "loss": float(sum(float(value) for value in losses)),
                "map": trainer.metrics["metrics/mAP50-95(B)"],
                "map50": trainer.metrics["metrics/mAP50(B)"],
                "gamma": mean_gammas(trainer.ema.ema),
            }
        )

    return keep


def mean_gammas(model: nn.Module) -> dict[str, float]:
    """Return the mean |gamma| of the last batch norm of each kind of branch, the dense one included."""
    found: dict[str, list[float]] = {}
    for block in model.modules():
        if isinstance(block, yolorep.Conv_C3) and not block.deployed:
            for name, branch in [("dense", block.bn), *block.branches()]:
                norms = [module for module in branch.modules() if isinstance(module, _BatchNorm)]
                if norms:
                    found.setdefault(name, []).append(float(norms[-1].weight.abs().mean()))
    return {name: mean(values) for name, values in found.items()}
