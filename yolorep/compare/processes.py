"""Run trainings in separate processes, several at a time. They end when the process that started them ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yolorep.bench.record import read_json, write_json
from yolorep.compare.plan import Plan, Run
from yolorep.errors import HostError, UsageError
from yolorep.hosts.ultralytics.cpu_threads import available_cores, process_cores

POLL_SECONDS = 0.2
LOG, RESULT = "log.txt", "result.json"


def device_of(given: Any) -> str:
    """Return the devices in ultralytics' notation. given: the value of `device=`; None: the first GPU, else the CPU.

    Raises:
        UsageError: this machine has no such device.

    Example:
        >>> device_of("cpu")
        'cpu'
    """
    gpus = [str(index) for index in range(torch.cuda.device_count())]
    if given is None:
        return gpus[0] if gpus else "cpu"
    device = re.sub(r"[\[\]()'\s]|cuda:", "", str(given))
    single = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if device not in single and not set(device.split(",")) <= set(gpus):
        accepted = ", ".join([*single, *gpus])
        raise UsageError(f"device={given} is not on this machine; accepted: {accepted}")
    return device


@dataclass(frozen=True)
class Slots:
    """Where trainings run at the same time. devices: one per training. threads: CPU threads of each."""

    devices: tuple[str, ...]
    threads: int

    @classmethod
    def of(cls, device: str, jobs: int | None) -> Slots:
        """Return a slot for every GPU that `device` names; on a CPU `jobs` slots, by default one for every two cores.

        Raises:
            UsageError: `jobs` beside several GPUs, or above the number of cores.

        Example:
            >>> Slots.of("0,1", None).devices
            ('0', '1')
        """
        gpus = tuple(part.strip() for part in device.split(",") if part.strip())
        if device != "cpu":
            if jobs is not None and jobs != len(gpus):
                raise UsageError(f"jobs={jobs}: every GPU of device={device} trains one run at a time; leave jobs out")
            return cls(gpus, available_cores())
        cores = process_cores()
        if jobs is not None and jobs > cores:
            raise UsageError(f"jobs={jobs} is more than the cores of this machine; accepted: 1 to {cores}")
        count = jobs or max(1, cores // 2)
        return cls(("cpu",) * count, min(available_cores(), max(1, cores // count)))

    @property
    def cpu_time(self) -> bool:
        """Whether the cost of an epoch is measured in CPU time, which other programs hardly change."""
        return self.devices[0] == "cpu" and self.threads == 1


def carry_out(
    runs: Sequence[Run], plan: Plan, folder: Path, slots: Slots, told: Callable[[Run, dict[str, Any]], object]
) -> dict[str, dict[str, Any]]:
    """Train every run that has no result yet; return all results by the run's name.

    told: called with each run that ends and its result.

    Raises:
        HostError: a training failed; the others are stopped, and go on when the command is repeated.
    """
    waiting = missing(runs, folder)
    active: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or active:
            for slot in range(len(slots.devices)):
                if slot not in active and waiting:
                    run = waiting.pop(0)
                    active[slot] = run, _start(run, plan, folder / run.name, slots, slots.devices[slot])
            for slot, (run, process) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[slot]
                if process.returncode:
                    raise HostError(_failure(run, folder / run.name, process.returncode))
                told(run, result_of(run, folder))
            time.sleep(POLL_SECONDS)
    finally:
        for _, process in active.values():
            process.kill()
            process.wait()
    return {run.name: result_of(run, folder) for run in runs}


def missing(runs: Sequence[Run], folder: Path) -> list[Run]:
    """Return the runs that have no result yet."""
    return [run for run in runs if not (folder / run.name / RESULT).is_file()]


def result_of(run: Run, folder: Path) -> dict[str, Any]:
    """Return the result of a run that has ended."""
    return read_json(folder / run.name / RESULT)


def _start(run: Run, plan: Plan, folder: Path, slots: Slots, device: str) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "model": run.arm.network or plan.model,
        "data": plan.data,
        "rep": run.arm.rep,
        "seed": run.seed,
        "epochs": run.epochs,
        "factor": run.factor,
        "train": {**plan.train, "device": device},
        "cpu_time": slots.cpu_time,
    }
    write_json(folder / "request.json", request)
    command = [sys.executable, "-m", "yolorep.compare.runs", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(slots.threads)}
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _failure(run: Run, folder: Path, code: int) -> str:
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"the run {run.name} failed with exit code {code}: {last}; its output is in {folder / LOG}"
