"""Training in two processes, killed in mid-epoch and resumed, against the same run left alone; on both hosts.

    python benchmarks/resume.py path/to/data.yaml --weights path/to/yolov5n-coco.pt

Each host trains --model by its own distributed launch, in two processes that take this CPU for two GPUs
(`cpu_as_gpus`): ultralytics from scratch, YOLOv5 from --weights. Uninterrupted runs of several seeds tell the noise.
Runs of the first --killed seeds get SIGKILL, every process of them, in the middle of an epoch, and are resumed.

A run that is finished in --runs is taken as it is. Writes one JSON file with every epoch of every run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
from accuracy import METRICS

PROCESSES = 2
HERE = Path(__file__).parent
# The epoch (ultralytics counts from 1, YOLOv5 from 0) and how much of it is done, in a host's progress bar.
PROGRESS = re.compile(r"(\d+)/\d+ +\S+G .*? (\d+)%")
INSPECT = """
import json, sys, torch
from yolorep.hosts.yolov5.compat import stand_in
from yolorep.stock_layers import rep_blocks
stand_in()
if sys.argv[2] == "yolov5":
    from yolorep.hosts.yolov5.compat import make_runnable
    make_runnable()
found = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
print(json.dumps({
    "epochs": found["epoch"] + 1,
    "blocks": len(rep_blocks(found["ema"])),
    "parameters": len(list(found["ema"].parameters())),
    "optimizer_states": len(found["optimizer"]["state"]),
}))
"""


def command(host: str, name: str, seed: int, options: argparse.Namespace) -> list[str]:
    """What starts a run in two processes by the host's own launch."""
    given = {"data": options.data, "epochs": options.epochs, "imgsz": options.imgsz, "seed": seed}
    given |= {"project": options.runs, "name": name, "device": "0,1", "workers": 0}
    if host == "ultralytics":
        # A step for each batch, so that a short schedule learns something from scratch.
        given |= {
            "batch": options.batch,
            "nbs": options.batch,
            "model": options.model,
            "plots": False,
            "exist_ok": True,
        }
        return [*yolorep(host), "train", *(f"{key}={value}" for key, value in given.items())]
    given |= {"batch-size": options.batch, "cfg": options.model, "weights": options.weights}
    flags = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    return [*yolorep(host), "yolov5", "train.py", *flags, "--noplots", "--exist-ok"]


def resumption(host: str, name: str, options: argparse.Namespace) -> list[str]:
    """What goes on with a run."""
    last = options.runs / name / "weights" / "last.pt"
    if host == "ultralytics":
        return [*yolorep(host), "train", f"model={last}", "resume=True", "device=0,1"]
    return [*yolorep(host), "yolov5", "train.py", "--resume", str(last)]


def yolorep(host: str) -> list[str]:
    """The command: ultralytics starts the processes itself, for YOLOv5 torch's launcher does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    return [sys.executable, *(launcher if host == "yolov5" else []), "-m", "yolorep"]


def start(arguments: list[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Run a command with its output added to `log`, each process on CPU threads of its own."""
    path = os.pathsep.join(filter(None, (str(HERE / "cpu_as_gpus"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as output:
        return subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)


def finish(arguments: list[str], log: Path, threads: int) -> None:
    """Run a command to its end."""
    if start(arguments, log, threads).wait():
        sys.exit(f"a run failed; its log is {log}")


def kill_in_mid_epoch(process: subprocess.Popen[bytes], log: Path, folder: Path, after: int) -> dict[str, int]:
    """SIGKILL the whole launch in the middle of the epoch that follows the first `after`; where it was."""
    while process.poll() is None:
        time.sleep(0.2)
        seen = PROGRESS.findall(log.read_text(errors="replace"))
        if seen and len(epochs_of(folder)) == after and 30 <= int(seen[-1][1]) <= 80:
            launch = psutil.Process(process.pid)
            processes = [launch, *launch.children(recursive=True)]
            for each in processes:
                each.kill()
            psutil.wait_procs(processes)
            return {"epochs_finished": after, "percent_of_the_next": int(seen[-1][1]), "processes": len(processes)}
    sys.exit(f"the run ended before it was killed; its log is {log}")


def epochs_of(folder: Path) -> list[dict[str, float]]:
    """Every epoch that a run has finished, as the host recorded it."""
    file = folder / "results.csv"
    if not file.is_file():
        return []
    with file.open() as rows:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(rows)]


def run(host: str, seed: int, options: argparse.Namespace, *, killed: bool) -> dict[str, object]:
    """One run, made unless it is there already. killed: in the middle, and then resumed."""
    name = f"{host}-seed{seed}" + "-killed" * killed
    folder, log = options.runs / name, options.runs / f"{name}.log"
    story = folder / "story.json"
    if not story.is_file():
        log.unlink(missing_ok=True)
        told: dict[str, object] = {}
        if killed:
            process = start(command(host, name, seed, options), log, options.threads)
            told["killed"] = kill_in_mid_epoch(process, log, folder, options.epochs // 2)
            told["checkpoint"] = inspect(folder / "weights" / "last.pt", host)
            finish(resumption(host, name, options), log, options.threads)
        else:
            finish(command(host, name, seed, options), log, options.threads)
        story.write_text(json.dumps(told))
    curves = dict(curves_of(epochs_of(folder)))
    final = {metric: curve[-1] for metric, curve in curves.items()}
    return {"host": host, "seed": seed, **json.loads(story.read_text()), **final, "curves": curves}


def inspect(checkpoint: Path, host: str) -> dict[str, int]:
    """What a checkpoint holds that was left behind by the kill."""
    printed = subprocess.run(
        [sys.executable, "-c", INSPECT, str(checkpoint), host], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(printed.stdout.splitlines()[-1])


def curves_of(epochs: list[dict[str, float]]) -> Iterator[tuple[str, list[float]]]:
    """A value for each epoch of each figure."""
    for metric, columns in METRICS.items():
        yield metric, [next(epoch[column] for column in columns if column in epoch) for epoch in epochs]


def summary(runs: list[dict]) -> dict[str, dict[str, list[float]]]:
    """The final figures, in the order of the seeds: of the uninterrupted runs, and of those killed and resumed."""
    kinds = {"uninterrupted": [r for r in runs if "killed" not in r], "resumed": [r for r in runs if "killed" in r]}
    return {metric: {kind: [run[metric] for run in some] for kind, some in kinds.items()} for metric in METRICS}


def main() -> None:
    """Run what is missing, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, default="", help="a checkpoint of YOLOv5 for that host to start from")
    parser.add_argument("--model", default="yolov5n-rep.yaml", help="yolov5n.yaml for stock")
    parser.add_argument("--hosts", nargs="+", default=["ultralytics", "yolov5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--killed", type=int, default=1, help="how many seeds are run once more, killed and resumed")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="of all processes together")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--runs", type=Path, default=Path("runs/resume"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="resume", help="of the file in --out")
    options = parser.parse_args()
    options.runs = options.runs.resolve()
    options.runs.mkdir(parents=True, exist_ok=True)
    results = {}
    for host in options.hosts:
        killed = [run(host, seed, options, killed=True) for seed in options.seeds[: options.killed]]
        results[host] = [*(run(host, seed, options, killed=False) for seed in options.seeds), *killed]
    record = {
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads_per_process": options.threads,
        },
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("yolorep", "ultralytics", "yolov5", "torch", "numpy")},
        "schedule": {
            "model": options.model,
            "processes": PROCESSES,
            "epochs": options.epochs,
            "batch": options.batch,
            "imgsz": options.imgsz,
            "data": options.data.parent.name,
            "weights": {"ultralytics": None, "yolov5": Path(options.weights).name or None},
        },
        "summary": {host: summary(runs) for host, runs in results.items()},
        "runs": [run for runs in results.values() for run in runs],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
