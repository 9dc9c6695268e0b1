"""Run the items of the GPU benchmark in separate processes, and stop on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_rows import Rows, Setting

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.5


class ItemError(Exception):
    """An item's process ended without finishing. log: the last lines that it printed."""

    def __init__(self, text: str, log: list[str]) -> None:
        super().__init__(text)
        self.text, self.log = text, log


def isolated(name: str, setting: Setting, limit: float) -> Rows:
    """Run an item in a separate process, and yield its rows as they are measured."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "gpu",
            "--child",
            name,
            str(rows),
            "--device",
            str(setting.device),
        ]
        command += ["--toy"] * setting.toy + ["--out", folder]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            yield from followed(process, rows, limit)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            raise ItemError(f"its process ended with {how}", log.read_text(errors="replace").splitlines()[-40:])


def followed(process: subprocess.Popen[bytes], rows: Path, limit: float) -> Rows:
    """Yield the rows that a process appends to a file, until it ends.

    Raises:
        ItemError: it does not end in time.
    """
    end, read = time.monotonic() + limit, 0
    while True:
        ended = process.poll() is not None
        text = rows.read_text(encoding="utf-8") if rows.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        for line in lines[read:]:
            yield json.loads(line)
        read = len(lines)
        if ended:
            return
        if time.monotonic() > end:
            raise ItemError(f"stopped after {limit:.0f} s", [])
        time.sleep(POLL_SECONDS)


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt; yields the list of the signals that came."""
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
