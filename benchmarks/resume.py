"""Distributed training killed in the middle of an epoch and resumed, against the same run left alone; on both hosts.

    python -m benchmarks resume path/to/data.yaml --weights path/to/yolov5n-coco.pt

Each host trains --model with its own distributed launch, in two processes that take this CPU for two GPUs
(`cpu_as_gpus`): ultralytics from scratch, YOLOv5 from --weights. Uninterrupted runs of several seeds show the noise.
The runs of the first --killed seeds are repeated: all their processes get SIGKILL in the middle of an epoch, and the
run is resumed. A finished run in --runs is reused. Writes results/NAME.json with every epoch of every run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.host_runs import METRICS, YOLOREP, curves_of, epochs_of, start, train_command
from benchmarks.runner import Recorder
from yolorep.errors import HostError

PROCESSES = 2
HERE = Path(__file__).parent
# The current epoch (ultralytics counts from 1, YOLOv5 from 0) and its finished share, in a host's progress bar.
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("data", type=Path, help="a data.yaml")
    parser.add_argument("--weights", type=Path, default="", help="a YOLOv5 checkpoint that the YOLOv5 runs start from")
    parser.add_argument("--model", default="yolov5n-rep.yaml", help="yolov5n.yaml for stock")
    parser.add_argument("--hosts", nargs="+", default=["ultralytics", "yolov5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--killed", type=int, default=1, help="number of seeds that are repeated, killed and resumed")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="images per step in all processes together")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--runs", type=Path, default=Path("runs/resume"), help="folder of the trainings")
    parser.set_defaults(device="cpu", threads=1)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Train the runs that the record lacks, and record all of them.

    Raises:
        HostError: a training failed, or ended before it could be killed.
    """
    options.runs = options.runs.resolve()
    options.runs.mkdir(parents=True, exist_ok=True)
    results = {}
    for host in options.hosts:
        killed = [one_run(host, seed, options, killed=True) for seed in options.seeds[: options.killed]]
        results[host] = [*(one_run(host, seed, options, killed=False) for seed in options.seeds), *killed]
    schedule = {
        "model": options.model,
        "processes": PROCESSES,
        "threads_per_process": options.threads,
        "epochs": options.epochs,
        "batch": options.batch,
        "imgsz": options.imgsz,
        "data": options.data.parent.name,
        "weights": {"ultralytics": None, "yolov5": Path(options.weights).name or None},
    }
    record = {
        "schedule": schedule,
        "autocast": None,
        "summary": {host: summary(runs) for host, runs in results.items()},
        "runs": [one for runs in results.values() for one in runs],
    }
    recorder.write(record)


def command(host: str, name: str, seed: int, options: argparse.Namespace) -> list[str]:
    """Return the command that starts a run in two processes with the host's own launch."""
    given = {"data": options.data, "epochs": options.epochs, "imgsz": options.imgsz, "seed": seed}
    given |= {"project": options.runs, "name": name, "device": "0,1", "workers": 0}
    if host == "ultralytics":
        # One optimizer step per batch, so that a short schedule from scratch learns something.
        given |= {"batch": options.batch, "nbs": options.batch, "model": options.model}
        given |= {"plots": False, "exist_ok": True}
        return train_command(host, given, [])
    given |= {"batch-size": options.batch, "cfg": options.model, "weights": options.weights}
    return train_command(host, given, ["--noplots", "--exist-ok"], launcher=launcher(host))


def resumption(host: str, name: str, options: argparse.Namespace) -> list[str]:
    """Return the command that resumes a run."""
    last = options.runs / name / "weights" / "last.pt"
    if host == "ultralytics":
        return [*YOLOREP, "train", f"model={last}", "resume=True", "device=0,1"]
    return train_command(host, {"resume": last}, [], launcher=launcher(host))


def launcher(host: str) -> list[str]:
    """Return torch's launcher for YOLOv5; ultralytics starts its processes itself."""
    distributed = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    return distributed if host == "yolov5" else []


def start_distributed(arguments: Sequence[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start a command whose processes take this CPU for two GPUs."""
    path = os.pathsep.join(filter(None, (str(HERE / "cpu_as_gpus"), os.environ.get("PYTHONPATH"))))
    return start(arguments, log, threads, {"PYTHONPATH": path})


def finish(arguments: Sequence[str], log: Path, threads: int) -> None:
    """Run a command to its end."""
    if start_distributed(arguments, log, threads).wait():
        raise HostError(f"a run failed; its log is {log}")


def kill_in_mid_epoch(process: subprocess.Popen[bytes], log: Path, folder: Path, after: int) -> dict[str, int]:
    """Send SIGKILL to all processes of a launch in the middle of epoch `after` + 1; returns where the run was."""
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
    raise HostError(f"the run ended before it was killed; its log is {log}")


def one_run(host: str, seed: int, options: argparse.Namespace, *, killed: bool) -> dict[str, Any]:
    """Return one run, trained unless it is there already. killed: kill it in the middle, then resume it."""
    name = f"{host}-seed{seed}" + "-killed" * killed
    folder, log = options.runs / name, options.runs / f"{name}.log"
    story = folder / "story.json"
    if not story.is_file():
        log.unlink(missing_ok=True)
        told: dict[str, Any] = {}
        if killed:
            process = start_distributed(command(host, name, seed, options), log, options.threads)
            told["killed"] = kill_in_mid_epoch(process, log, folder, options.epochs // 2)
            told["checkpoint"] = inspect(folder / "weights" / "last.pt", host)
            finish(resumption(host, name, options), log, options.threads)
        else:
            finish(command(host, name, seed, options), log, options.threads)
        story.write_text(json.dumps(told))
    curves = curves_of(epochs_of(folder))
    final = {metric: curve[-1] for metric, curve in curves.items()}
    return {"host": host, "seed": seed, **json.loads(story.read_text()), **final, "curves": curves}


def inspect(checkpoint: Path, host: str) -> dict[str, int]:
    """Return the contents of the checkpoint that a killed run left: epochs, blocks, parameters, optimizer states."""
    printed = subprocess.run(
        [sys.executable, "-c", INSPECT, str(checkpoint), host], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(printed.stdout.splitlines()[-1])


def summary(runs: Sequence[dict]) -> dict[str, dict[str, list[float]]]:
    """Return the final metrics in the order of the seeds: of the uninterrupted runs, and of the resumed ones."""
    kinds = {"uninterrupted": [r for r in runs if "killed" not in r], "resumed": [r for r in runs if "killed" in r]}
    return {metric: {kind: [one[metric] for one in some] for kind, some in kinds.items()} for metric in METRICS}
