"""Fine-tune a YOLOv5 checkpoint from every start that keeps its function, against fine-tuning it as it is.

    python -m benchmarks starts path/to/data.yaml --weights yolov5n-coco.pt --tree path/to/yolov5

Each arm is the same weights: as they are, or after `yolorep expand` with a block and a start. train.py of a copy of
the tree trains them, with an optimizer step for every batch (the host gathers 64 images for one). A seed that is not
compared chooses the learning rate of every arm. Score: mAP50-95, mean of the last 3 epochs. The difference from stock
is taken in pairs of one seed. Runs that are in --runs already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml

from benchmarks.host_runs import YOLOREP, curves_of, epochs_of, start
from benchmarks.runner import Recorder
from yolorep.compare.intervals import interval
from yolorep.compare.runs import LAST, mean_gains
from yolorep.errors import HostError, UsageError
from yolorep.hosts.yolov5.compat import make_runnable, stand_in

STOCK = "stock"
# arm → the options of `yolorep expand`
ARMS: dict[str, Sequence[str]] = {
    STOCK: (),
    "silent": ("--block", "repvgg"),
    "split": ("--block", "repvgg", "--start", "split"),
    "twin": ("--block", "twin"),
    "refconv": ("--block", "refconv"),
    "csla": ("--block", "csla", "--start", "split"),
}
SWEEP_SEED = 90210


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("data", type=Path, help="a data.yaml")
    parser.add_argument("--weights", type=Path, required=True, help="a checkpoint of YOLOv5")
    parser.add_argument("--tree", type=Path, required=True, help="a YOLOv5 checkout; it is copied")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr", nargs="+", type=float, default=[0.01, 0.03, 0.1], help="tried for every arm (SGD)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sweep", type=int, help="epochs of the runs that choose the learning rate; default: half")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--runs", type=Path, default=Path("runs/starts"), help="folder of the trainings")
    parser.set_defaults(device="cpu", threads=1)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Train the missing runs, and write the record after each of them.

    Raises:
        UsageError: the tree is none, or its train.py has another form.
        HostError: a training failed.
    """
    options.runs = options.runs.resolve()
    options.data, options.weights = options.data.resolve(), options.weights.resolve()
    tree = copied_tree(options.tree, options.runs / "tree", options.batch)
    files = {arm: starting_file(arm, options) for arm in options.arms}
    epochs = options.sweep or max(1, options.epochs // 2)
    sweep: dict[str, dict[float, float]] = {arm: {} for arm in options.arms}
    rates = dict.fromkeys(options.arms, options.lr[0])
    for arm, lr in [(arm, lr) for arm in options.arms for lr in options.lr if len(options.lr) > 1]:
        sweep[arm][lr] = one_run(arm, lr, SWEEP_SEED, epochs, files[arm], tree, options)["mAP50-95"]
    rates.update({arm: max(found, key=found.__getitem__) for arm, found in sweep.items() if found})
    runs: list[dict[str, Any]] = []
    for seed, arm in [(seed, arm) for seed in options.seeds for arm in options.arms]:
        runs.append(one_run(arm, rates[arm], seed, options.epochs, files[arm], tree, options))
        recorder.write(record_of(options, sweep, rates, runs))
        print(f"{arm}, seed {seed}, lr {rates[arm]:g}: mAP50-95 {runs[-1]['mAP50-95']:.4f}", flush=True)


def copied_tree(tree: Path, copy: Path, batch: int) -> Path:
    """Return a copy of a checkout whose train.py steps after every batch of `batch` images.

    Raises:
        UsageError: there is no train.py, or it says nowhere how many images it gathers.
    """
    script = tree / "train.py"
    text = script.read_text(encoding="utf-8") if script.is_file() else ""
    gathers = "nbs = 64"
    if text.count(gathers) != 1:
        raise UsageError(f"{script} has no line `{gathers}`; accepted: a checkout of YOLOv5")
    if not copy.is_dir():
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(".git", "runs"))
    (copy / "train.py").write_text(text.replace(gathers, f"nbs = {batch}"), encoding="utf-8")
    return copy


def starting_file(arm: str, options: argparse.Namespace) -> Path:
    """Return the checkpoint that an arm starts from, written unless it is there."""
    if not ARMS[arm]:
        return Path(options.weights)
    file: Path = options.runs / f"{arm}.pt"
    if not file.is_file():
        images = ("--data", options.data, "--imgsz", options.imgsz) if "split" in ARMS[arm] else ()
        command = [*YOLOREP, "expand", options.weights, file, *ARMS[arm], *images, "--repo", options.tree]
        subprocess.run(list(map(str, command)), check=True)
    return file


def one_run(
    arm: str, lr: float, seed: int, epochs: int, weights: Path, tree: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Return one run, trained unless it is there already."""
    name = f"{arm}-lr{lr:g}-seed{seed}-{epochs}"
    folder, log, done = options.runs / name, options.runs / f"{name}.log", options.runs / f"{name}.json"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        hyp = options.runs / f"lr{lr:g}.yaml"
        values = yaml.safe_load((tree / "data" / "hyps" / "hyp.scratch-low.yaml").read_text(encoding="utf-8"))
        hyp.write_text(yaml.safe_dump({**values, "lr0": lr}), encoding="utf-8")
        given = {"data": options.data, "weights": weights, "hyp": hyp, "epochs": epochs, "seed": seed}
        given |= {"batch-size": options.batch, "imgsz": options.imgsz, "device": "cpu", "workers": 0}
        given |= {"project": options.runs, "name": name}
        text = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        command = [*YOLOREP, "yolov5", "--repo", str(tree), "train.py", *text, "--noplots", "--exist-ok"]
        if start(command, log, options.threads).wait():
            raise HostError(f"a run failed; its log is {log}")
        done.write_text(json.dumps(told(folder)), encoding="utf-8")
    return {"arm": arm, "lr": lr, "seed": seed, **json.loads(done.read_text(encoding="utf-8"))}


def told(folder: Path) -> dict[str, Any]:
    """Return the scores, the curves and the mean gains of the branches of a finished run."""
    curves = curves_of(epochs_of(folder))
    stand_in()
    make_runnable()
    last = torch.load(folder / "weights" / "last.pt", map_location="cpu", weights_only=False)
    gains = mean_gains((last.get("ema") or last["model"]).float())
    return {**{name: mean(curve[-LAST:]) for name, curve in curves.items()}, "gains": gains, "curves": curves}


def record_of(
    options: argparse.Namespace,
    sweep: Mapping[str, Mapping[float, float]],
    rates: Mapping[str, float],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the record: the schedule, the sweep, every run, and the differences from stock in pairs."""
    scores = {(one["arm"], one["seed"]): one["mAP50-95"] for one in runs}
    differences = {
        arm: [
            scores[arm, seed] - scores[STOCK, seed]
            for seed in options.seeds
            if {(arm, seed), (STOCK, seed)} <= scores.keys()
        ]
        for arm in options.arms
        if arm != STOCK
    }
    names = ("epochs", "sweep", "batch", "imgsz", "threads")
    return {
        **{name: getattr(options, name) for name in names},
        "data": options.data.parent.name,
        "weights": options.weights.name,
        "arms": {arm: list(ARMS[arm]) for arm in options.arms},
        "tried": sweep,
        "rates": rates,
        "differences": {arm: asdict(interval(found)) for arm, found in differences.items() if found},
        "runs": list(runs),
    }
