"""Stock against rep on one data set: the same schedule, several seeds, one process a run.

    python benchmarks/accuracy.py path/to/data.yaml --seeds 0 1 2 --epochs 40 --imgsz 320
    python benchmarks/accuracy.py path/to/data.yaml --seeds 0 --blocks acb mobileone --name accuracy-blocks
    python benchmarks/accuracy.py path/to/data.yaml --weights yolov5n-coco.pt --epochs 20 --name finetuning

--blocks adds yolov5n-rep with every row asking for that block. --weights starts every run from a checkpoint of YOLOv5,
by train.py of the `yolov5` package; without it ultralytics trains from scratch.

Runs are made in pairs, stock and rep of one seed side by side with one thread each, so that both meet the same load.
A run that is finished in --runs is taken as it is. Writes one JSON file with every epoch of every run, and a plot.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from statistics import mean, stdev

import yaml

# A figure, and the column of results.csv that has it: of ultralytics, of YOLOv5.
METRICS = {
    "mAP50": ("metrics/mAP50(B)", "metrics/mAP_0.5"),
    "mAP50-95": ("metrics/mAP50-95(B)", "metrics/mAP_0.5:0.95"),
}


def epochs_of(model: str, seed: int, runs: Path) -> list[dict[str, float]]:
    """Every epoch that a run has finished, as the host recorded it."""
    file = runs / f"{Path(model).stem}-seed{seed}" / "results.csv"
    if not file.is_file():
        return []
    with file.open() as rows:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(rows)]


def with_block(block: str, runs: Path) -> str:
    """The path of yolov5n-rep.yaml written with `block` as an option of each of its rep rows."""
    source = files("yolorep") / "models" / "yolov5n-rep.yaml"
    network = yaml.safe_load(source.read_text())
    for row in (*network["backbone"], *network["head"]):
        if row[2] in ("Conv_C3", "C3Rep"):
            row[3].append({"block": block})
    file = runs / f"yolov5n-{block}.yaml"
    file.write_text(yaml.safe_dump(network, sort_keys=False))
    return str(file)


def start(model: str, seed: int, options: argparse.Namespace, runs: Path) -> subprocess.Popen[bytes]:
    """Train in a process of its own, its output in a log beside its folder."""
    name = f"{Path(model).stem}-seed{seed}"
    given: dict[str, object] = {"data": options.data, "epochs": options.epochs, "imgsz": options.imgsz, "seed": seed}
    given |= {"device": "cpu", "workers": 1, "project": runs, "name": name}
    command = [sys.executable, "-m", "yolorep"]
    if options.weights:
        given |= {"cfg": model, "weights": options.weights}
        command += ["yolov5", "train.py", "--exist-ok", "--noplots"]
        command += [text for key, value in given.items() for text in (f"--{key}", str(value))]
    else:
        command += ["train", f"model={model}", "exist_ok=True", "plots=False"]
        command += [f"{key}={value}" for key, value in given.items()]
    log = (runs / f"{name}.log").open("wb")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def result(model: str, seed: int, runs: Path) -> dict[str, object]:
    """A finished run; its figures are those of the epoch with the best mAP50-95, which the host kept as best.pt."""
    epochs = epochs_of(model, seed, runs)
    curves = {name: [next(e[c] for c in columns if c in e) for e in epochs] for name, columns in METRICS.items()}
    best = max(range(len(epochs)), key=curves["mAP50-95"].__getitem__)
    figures = {name: curve[best] for name, curve in curves.items()}
    run = {"model": Path(model).name, "seed": seed, **figures, "curves": curves}
    return run | ({"seconds": epochs[-1]["time"]} if "time" in epochs[-1] else {})


def summary(results: list[dict], models: list[str]) -> dict[str, dict]:
    """Mean and standard deviation over the seeds, by model and figure."""
    table = {}
    for model in models:
        mine = [r for r in results if r["model"] == Path(model).name]
        table[Path(model).name] = {
            key: {"mean": mean(r[key] for r in mine), "sd": stdev(r[key] for r in mine) if len(mine) > 1 else None}
            for key in (*METRICS, "seconds")
            if key in mine[0]
        }
    return table


def plot(results: list[dict], models: list[str], file: Path) -> None:
    """Draw the figures of every run over its epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(METRICS), figsize=(10, 4), constrained_layout=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        for place, model in enumerate(models):
            colour = "tab:grey" if place == 0 else f"C{place - 1}"
            for run in (r for r in results if r["model"] == Path(model).name):
                curve = run["curves"][metric]
                label = Path(model).stem if run["seed"] == results[0]["seed"] else None
                axis.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.7, label=label)
        axis.set(xlabel="epoch", ylabel=metric, title=metric)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run what is missing, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--models", nargs="+", default=["yolov5n.yaml", "yolov5n-rep.yaml"])
    parser.add_argument("--blocks", nargs="+", default=[], help="also yolov5n-rep with these blocks")
    parser.add_argument("--weights", help="a checkpoint of YOLOv5 to fine-tune, by YOLOv5's train.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="accuracy", help="of the files in --out")
    options = parser.parse_args()
    runs = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    models = [*options.models, *(with_block(block, runs) for block in options.blocks)]
    results = []
    for seed in options.seeds:
        missing = [m for m in models if len(epochs_of(m, seed, runs)) < options.epochs]
        for pair in zip_longest(missing[::2], missing[1::2]):
            for process in [start(model, seed, options, runs) for model in pair if model]:
                if process.wait():
                    sys.exit(f"a run of seed {seed} failed; its log is in {runs}")
        results += [result(model, seed, runs) for model in models]
    packages = {
        name: version(name) for name in ("yolorep", "yolov5" if options.weights else "ultralytics", "torch", "numpy")
    }
    record = {
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads_per_run": options.threads,
        },
        "python": platform.python_version(),
        "packages": packages,
        "schedule": {
            "epochs": options.epochs,
            "imgsz": options.imgsz,
            "data": Path(options.data).parent.name,
            "weights": Path(options.weights).name if options.weights else None,
        },
        "summary": summary(results, models),
        "runs": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(results, models, options.out / f"{options.name}.png")


if __name__ == "__main__":
    main()
