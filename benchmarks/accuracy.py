"""mAP of stock and rep on one data set: the same schedule, several seeds, one process per run.

    python -m benchmarks accuracy path/to/data.yaml --seeds 0 1 2 --epochs 40 --imgsz 320
    python -m benchmarks accuracy path/to/data.yaml --seeds 0 --blocks acb mobileone --name accuracy-blocks
    python -m benchmarks accuracy path/to/data.yaml --weights yolov5n-coco.pt --epochs 20 --name finetuning

--blocks adds yolov5n-rep with that block in every row. --weights starts every run from a YOLOv5 checkpoint and trains
with train.py of the `yolov5` package; without it, ultralytics trains from scratch.

Runs are started in pairs, for example stock and rep of one seed, with one thread each, so that both have the same load
beside them. A finished run in --runs is reused. Writes results/NAME.json with every epoch of every run, and NAME.png.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.host_runs import METRICS, curves_of, epochs_of, start, train_command
from benchmarks.runner import Recorder
from yolorep.errors import HostError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("data", help="a data.yaml")
    parser.add_argument("--models", nargs="+", default=["yolov5n.yaml", "yolov5n-rep.yaml"])
    parser.add_argument("--blocks", nargs="+", default=[], help="add yolov5n-rep with each of these blocks")
    parser.add_argument("--weights", help="a YOLOv5 checkpoint to fine-tune with YOLOv5's train.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the trainings")
    parser.set_defaults(device="cpu", threads=1)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Train what is missing, and record everything.

    Raises:
        HostError: a training failed.
    """
    runs = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    models = [*options.models, *(with_block(block, runs) for block in options.blocks)]
    results = []
    for seed in options.seeds:
        missing = [m for m in models if len(epochs_of(folder_of(m, seed, runs))) < options.epochs]
        for pair in zip_longest(missing[::2], missing[1::2]):
            for process in [train(model, seed, options, runs) for model in pair if model]:
                if process.wait():
                    raise HostError(f"a run of seed {seed} failed; its log is in {runs}")
        results += [result(model, seed, runs) for model in models]
    schedule = {
        "epochs": options.epochs,
        "imgsz": options.imgsz,
        "data": Path(options.data).parent.name,
        "weights": Path(options.weights).name if options.weights else None,
        "threads_per_run": options.threads,
    }
    record = {"schedule": schedule, "autocast": None, "summary": summary(results, models), "runs": results}
    recorder.write(record, also={".png": lambda file: plot(results, models, file)})


def folder_of(model: str, seed: int, runs: Path) -> Path:
    """Return the folder of a run."""
    return runs / f"{Path(model).stem}-seed{seed}"


def with_block(block: str, runs: Path) -> str:
    """Write yolov5n-rep.yaml with `block` as an option of each of its rep rows, and return the path."""
    source = files("yolorep") / "models" / "yolov5n-rep.yaml"
    network = yaml.safe_load(source.read_text())
    for row in (*network["backbone"], *network["head"]):
        if row[2] in ("Conv_C3", "C3Rep"):
            row[3].append({"block": block})
    file = runs / f"yolov5n-{block}.yaml"
    file.write_text(yaml.safe_dump(network, sort_keys=False))
    return str(file)


def train(model: str, seed: int, options: argparse.Namespace, runs: Path) -> subprocess.Popen[bytes]:
    """Start a training; its log is beside its folder."""
    name = folder_of(model, seed, runs).name
    given: dict[str, object] = {"data": options.data, "epochs": options.epochs, "imgsz": options.imgsz, "seed": seed}
    given |= {"device": options.device, "workers": 1, "project": runs, "name": name}
    if options.weights:
        given |= {"cfg": model, "weights": options.weights}
        command = train_command("yolov5", given, ["--exist-ok", "--noplots"])
    else:
        given |= {"model": model, "exist_ok": True, "plots": False}
        command = train_command("ultralytics", given, [])
    log = runs / f"{name}.log"
    log.unlink(missing_ok=True)
    return start(command, log, options.threads)


def result(model: str, seed: int, runs: Path) -> dict[str, Any]:
    """Return a finished run with the metrics of its best epoch, which the host keeps as best.pt."""
    epochs = epochs_of(folder_of(model, seed, runs))
    curves = curves_of(epochs)
    best = max(range(len(epochs)), key=curves["mAP50-95"].__getitem__)
    figures = {name: curve[best] for name, curve in curves.items()}
    found = {"model": Path(model).name, "seed": seed, **figures, "curves": curves}
    return found | ({"seconds": epochs[-1]["time"]} if "time" in epochs[-1] else {})


def summary(results: Sequence[dict], models: Sequence[str]) -> dict[str, dict]:
    """Return mean and standard deviation over the seeds, by model and metric."""
    table = {}
    for model in models:
        of_model = [r for r in results if r["model"] == Path(model).name]
        table[Path(model).name] = {
            key: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
            for key in (*METRICS, "seconds")
            if key in of_model[0] and (values := [r[key] for r in of_model])
        }
    return table


def plot(results: Sequence[dict], models: Sequence[str], file: Path) -> None:
    """Draw the metrics of every run over its epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for place, model in enumerate(models):
            colour = "tab:grey" if place == 0 else f"C{place - 1}"
            for one in (r for r in results if r["model"] == Path(model).name):
                curve = one["curves"][metric]
                label = Path(model).stem if one["seed"] == results[0]["seed"] else None
                axis.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.7, label=label)
        axis.set(xlabel="epoch", ylabel=metric, title=metric)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
