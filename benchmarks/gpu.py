"""Everything that needs a GPU, in one command and in under 20 minutes: proofs first, then timings.

    python -m benchmarks gpu
    python -m benchmarks gpu --only parity gradscaler
    python -m benchmarks gpu --toy                      # smallest sizes; the default on a CPU
    python benchmarks/gpu.py                            # the same without -m

Each item runs in its own process, so that a crash, a hang, exhausted memory or a broken CUDA context costs that item
only. The record results/NAME.json and its table NAME.md are replaced whenever a row is measured. Stopped by Ctrl-C, by
SIGTERM or by a kill, they hold the rows measured until then. Cheap checks come first; an item for which no time is left
is recorded as skipped. Exit code 1 if a check found a fault or an item failed.

THE CUDA PATHS OF THIS BENCHMARK HAVE NOT BEEN RUN ON A GPU YET: they were written and tested on a CPU at toy size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if (
    __name__ == "__main__" and not __package__
):  # `python benchmarks/gpu.py` puts this folder on the path, not its parent
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import gpu_checks, gpu_models, gpu_timings
from benchmarks.gpu_processes import ItemError, isolated, stopping
from benchmarks.gpu_rows import BAD, ERROR, SKIPPED, Row, Rows, Setting
from benchmarks.runner import Recorder
from yolorep.bench import timing
from yolorep.bench.record import torch_flags
from yolorep.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
RUNNING, STOPPED = "running", "stopped"


@dataclass(frozen=True)
class Item:
    """One part of the benchmark. limit: seconds after which its process is killed."""

    rows: Callable[[Setting], Rows]
    limit: int


# In the order in which they run: cheap checks that find the most faults come first.
ITEMS: dict[str, Item] = {
    "gradscaler": Item(gpu_checks.gradscaler, 60),
    "synchronization": Item(gpu_checks.synchronization, 90),
    "parity": Item(gpu_checks.parity, 240),
    "graph capture": Item(gpu_checks.graph_capture, 120),
    "deployment": Item(gpu_models.deployment, 90),
    "tests": Item(gpu_checks.tests, 180),
    "commands": Item(gpu_models.commands, 240),
    "launches": Item(gpu_timings.launches, 60),
    "model steps": Item(gpu_timings.model_steps, 240),
    "inference": Item(gpu_timings.inference, 240),
    "block steps": Item(gpu_timings.block_steps, 180),
    "compiled steps": Item(gpu_timings.compiled_steps, 420),
}


@dataclass
class Progress:
    """What has been found so far: item → its verdict, seconds and rows."""

    setting: Setting
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def faults(self) -> int:
        """Return the number of rows and items that failed."""
        rows = sum(row["verdict"] in BAD for item in self.found.values() for row in item["rows"])
        return rows + sum(item["verdict"] == ERROR and not item["rows"] for item in self.found.values())

    def write(self, recorder: Recorder) -> None:
        """Replace the record and the table."""
        results = {"toy": self.setting.toy, "faults": self.faults, "items": self.found}
        recorder.write(results, flags=torch_flags(), also={".md": markdown(self.found)})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--only", nargs="+", choices=ITEMS, metavar="ITEM", help=f"items to run: {', '.join(ITEMS)}")
    parser.add_argument("--toy", action="store_true", help="smallest sizes; always on a CPU")
    parser.add_argument("--minutes", type=float, default=19, help="no item starts, and none goes on, after this time")
    parser.add_argument("--in-process", action="store_true", help="run all items in this process: no isolation")
    parser.add_argument("--child", nargs=2, metavar=("ITEM", "FILE"), help=argparse.SUPPRESS)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Run the items and record them.

    Raises:
        SystemExit: with 1 if something failed, with 128 + the signal's number after a signal.
        UsageError: the device does not exist.
    """
    setting = setting_of(options)
    if options.child:
        child(options.child[0], Path(options.child[1]), setting)
        return
    progress, console = Progress(setting), Console()
    execute = in_process if options.in_process else isolated
    deadline = time.monotonic() + 60 * options.minutes
    with stopping() as stopped:
        for name in options.only or ITEMS:
            left = deadline - time.monotonic()
            if left < 1:
                progress.found[name] = {"verdict": SKIPPED, "text": "no time left", "seconds": 0, "rows": []}
                continue
            console.print(f"{name} …")
            item = progress.found[name] = {"verdict": RUNNING, "text": "", "seconds": 0.0, "rows": []}
            begin = time.monotonic()
            try:
                for row in execute(name, setting, min(ITEMS[name].limit, left)):
                    item["rows"].append(row)
                    item["seconds"] = time.monotonic() - begin
                    progress.write(recorder)
                item["verdict"] = verdict_of(item["rows"])
            except ItemError as error:
                item |= {"verdict": ERROR, "text": error.text, "log": error.log}
            except KeyboardInterrupt:
                item["verdict"] = STOPPED
                break
            finally:
                item["seconds"] = time.monotonic() - begin
                progress.write(recorder)
    progress.write(recorder)
    console.print(table(progress.found))
    console.print(f"{progress.faults} failed; wrote {recorder.path('.json')} {recorder.path('.md')}", markup=False)
    if stopped:
        sys.exit(128 + stopped[0])
    sys.exit(bool(progress.faults))


def setting_of(options: argparse.Namespace) -> Setting:
    """Return device and size; a CPU always gets the toy size.

    Raises:
        UsageError: the device does not exist.
    """
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise UsageError(f"device {options.device!r} is unknown; accepted: cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(
            f"device {options.device!r} is not on this machine; accepted: cpu, or the GPUs that torch lists"
        )
    return Setting(device, options.toy or device.type == "cpu")


def verdict_of(rows: Sequence[Row]) -> str:
    """Return the worst verdict of an item's rows."""
    verdicts = [row["verdict"] for row in rows]
    return next((v for v in (*BAD, "ok", "measured", SKIPPED) if v in verdicts), ERROR)


# Running an item -----------------------------------------------------------------------------------------------------


def in_process(name: str, setting: Setting, limit: float) -> Rows:
    """Run an item in this process. limit: not enforced while a row is measured."""
    end = time.monotonic() + limit
    with prepared(setting):
        for row in ITEMS[name].rows(setting):
            yield row
            if time.monotonic() > end:
                raise ItemError(f"took longer than {limit:.0f} s", [])


def child(name: str, rows: Path, setting: Setting) -> None:
    """Run one item and append each row to a file at once; ends when the parent process is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with prepared(setting), rows.open("a", encoding="utf-8") as file:
        for row in ITEMS[name].rows(setting):
            file.write(json.dumps(row, default=str) + "\n")
            file.flush()


@contextmanager
def prepared(setting: Setting) -> Iterator[None]:
    """Use the device as the current one, and short samples at toy size."""
    before = timing.SAMPLE_SECONDS
    timing.SAMPLE_SECONDS = 0.001 if setting.toy else before
    try:
        if setting.cuda:
            torch.cuda.set_device(setting.device)
        yield
    finally:
        timing.SAMPLE_SECONDS = before


# Tables --------------------------------------------------------------------------------------------------------------


def cells(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield item, case, verdict and result of every row, after one line for the item itself."""
    for name, item in found.items():
        yield name, f"{item['seconds']:.0f} s", item["verdict"], item["text"]
        for row in item["rows"]:
            yield "", row["case"], row["verdict"], row["text"]


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Return the table for the screen."""
    view = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("item", "case", "verdict", "result"):
        view.add_column(column, overflow="fold")
    for line in cells(found):
        view.add_row(*(escape(cell) for cell in line), style="red" if line[2] in BAD else None)
    return view


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = ["| item | case | verdict | result |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in cells(found)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from benchmarks.runner import main

    main(["gpu", *sys.argv[1:]])
