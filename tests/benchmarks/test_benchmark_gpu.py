"""`python -m benchmarks gpu` at toy size on a CPU: what it records, what it says of a fault, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_processes, gpu_rows, runner
from benchmarks.gpu import ITEMS, Item
from benchmarks.gpu_rows import Found, Rows, Setting, row
from tests.helpers import ROOT
from yolorep import Conv_C3

CPU = ["--device", "cpu", "--in-process"]


@pytest.fixture(autouse=True)
def same_process() -> Iterator[None]:
    """The benchmark sets what a process of its own may set."""
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before
    torch.compiler.reset()


def benchmark(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the benchmark and return its record."""
    with pytest.raises(SystemExit) as end:
        runner.run("gpu", [*arguments, "--out", str(folder)])
    assert int(end.value.code or 0) == code, (folder / "gpu.md").read_text()
    return json.loads((folder / "gpu.json").read_text())


def test_everything_runs_at_toy_size(tmp_path: Path) -> None:
    record = benchmark(tmp_path, *CPU)
    assert list(record["items"]) == list(ITEMS)
    assert record["toy"] is True
    assert record["faults"] == 0
    verdicts = {name: item["verdict"] for name, item in record["items"].items()}
    needs_a_gpu = {"synchronization", "graph capture"}
    assert {name for name, verdict in verdicts.items() if verdict == "skipped"} == needs_a_gpu
    assert set(verdicts.values()) == {"ok", "measured", "skipped"}
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} |" in table for name in ITEMS)
    assert all(row["case"] in table for item in record["items"].values() for row in item["rows"])
    assert_timings_have_settings_and_samples(record)


def assert_timings_have_settings_and_samples(record: dict[str, Any]) -> None:
    rows = [one for item in record["items"].values() for one in item["rows"] if "seconds" in one]
    assert len(rows) > 8
    for one in rows:
        assert one["flags"].keys() >= {"tf32_convolutions", "tf32_matmul", "cudnn_benchmark", "threads"}
        assert all(len(samples) == 2 for samples in one["seconds"].values())
        assert "autocast" in one
    steps = record["items"]["model steps"]["rows"][0]
    assert list(steps["seconds"]) == ["stock", "separate", "joint", "stock again"]
    assert steps["autocast"] == "torch.bfloat16"
    assert steps["flags"]["cudnn_benchmark"] is True


def test_a_planted_parity_fault_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Conv_C3.forward
    monkeypatch.setattr(
        Conv_C3, "forward", lambda block, x: forward(block, x) * (1.01 if block.joint and block.training else 1)
    )
    record = benchmark(tmp_path, *CPU, "--only", "parity", code=1)
    rows = {one["case"]: one for one in record["items"]["parity"]["rows"]}
    assert rows["same, contiguous, float32"]["verdict"] == "fault"
    assert rows["stride 2, channels_last, float32"]["verdict"] == "fault"
    assert record["faults"] >= 2
    assert "| fault |" in (tmp_path / "gpu.md").read_text()


def test_a_joint_form_that_is_not_run_is_an_error_and_not_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conv_C3, "joint", property(lambda block: False, lambda block, value: None), raising=False)
    record = benchmark(tmp_path, *CPU, "--only", "parity", code=1)
    verdicts = {one["case"]: one["verdict"] for one in record["items"]["parity"]["rows"]}
    assert verdicts["same, contiguous, float32"] == "error"


class FakeGraph:
    """Stands for a CUDA graph: capturing runs the call once, replaying does nothing."""

    def replay(self) -> None:
        pass


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CUDA paths run on the CPU, so that at least their Python is executed without a GPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes: dict[str, Any] = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda one: nullcontext(),
        "CUDAGraph": FakeGraph,
        "graph": lambda one: nullcontext(),
        "synchronize": lambda: None,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: modes.append(mode),
    }
    modes: list[Any] = []
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "modes", modes, raising=False)
    monkeypatch.setattr(Setting, "need_cuda", lambda setting: None)


@pytest.mark.parametrize("check", [gpu_checks.synchronization, gpu_checks.graph_capture])
def test_the_python_of_a_cuda_check_runs(fake_cuda: None, check: Callable[[Setting], Rows]) -> None:
    rows = [one for one in check(Setting(torch.device("cpu"), True)) if one["case"].startswith("block")]
    assert [(one["case"], one["verdict"]) for one in rows] == [("block, separate", "ok"), ("block, joint", "ok")]


def test_a_synchronization_is_a_fault_and_the_mode_is_restored(
    fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def step(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(gpu_checks, "train_step", step)
    first = next(iter(gpu_checks.synchronization(Setting(torch.device("cpu"), True))))
    assert first["verdict"] == "fault"
    assert "synchronizing" in first["text"]
    assert torch.cuda.modes == ["error", 0]  # type: ignore[attr-defined]


def items(monkeypatch: pytest.MonkeyPatch, **functions: Callable[[Setting], Rows]) -> None:
    """Replace the benchmark's items."""
    for name in list(ITEMS):
        monkeypatch.delitem(ITEMS, name)
    for name, function in functions.items():
        monkeypatch.setitem(ITEMS, name, Item(function, 60))


def good(setting: Setting) -> Rows:
    yield row("a case", lambda: Found(True, "fine", {}))


def bad(setting: Setting) -> Rows:
    yield row("division", lambda: Found(1 // 0 > 0, "", {}))
    yield row("memory", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    yield row("after them", lambda: Found(True, "fine", {}))


def test_an_error_is_a_row_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items(monkeypatch, bad=bad, good=good)
    record = benchmark(tmp_path, *CPU, code=1)
    assert [one["verdict"] for one in record["items"]["bad"]["rows"]] == ["error", "error", "ok"]
    assert "ZeroDivisionError" in record["items"]["bad"]["rows"][0]["text"]
    assert "division" in record["items"]["bad"]["rows"][0]["traceback"] or "1 // 0" in str(record["items"]["bad"])
    assert record["items"]["good"]["verdict"] == "ok"
    assert record["faults"] == 2


def test_without_time_an_item_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items(monkeypatch, good=good)
    record = benchmark(tmp_path, *CPU, "--minutes", "0")
    assert record["items"]["good"] | {"seconds": 0} == {
        "verdict": "skipped",
        "text": "no time left",
        "seconds": 0,
        "rows": [],
    }


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(setting: Setting) -> Rows:
        yield row("first", lambda: Found(True, "fine", {}))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        yield row("never", lambda: Found(True, "fine", {}))

    items(monkeypatch, interrupted=interrupted, good=good)
    record = benchmark(tmp_path, *CPU, code=128 + signal.SIGTERM)
    assert list(record["items"]) == ["interrupted"]
    assert record["items"]["interrupted"]["verdict"] == "stopped"
    assert [one["case"] for one in record["items"]["interrupted"]["rows"]] == ["first"]


@pytest.mark.parametrize(
    ("program", "says", "rows"),
    [
        ("print('boom'); raise SystemExit(3)", "ended with exit code 3", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal 11", 0),
        ('import time; open(rows, \'w\').write(\'{"case": 1, "verdict": "ok"}\\n{"ca\'); time.sleep(60)', "stopped", 1),
    ],
    ids=["exit", "crash", "hang"],
)
def test_an_item_whose_process_ends_badly_is_an_error(
    program: str, says: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", f"rows = {command[command.index('--child') + 2]!r}; {program}"], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(gpu_processes, "POLL_SECONDS", 0.05)
    seen: list[Any] = []
    with pytest.raises(gpu_processes.ItemError, match=says):
        seen.extend(gpu_processes.isolated("parity", Setting(torch.device("cpu"), True), limit=2))
    assert len(seen) == rows


def test_items_run_in_processes_of_their_own_and_the_file_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--only", "gradscaler"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["verdict"] for one in record["items"]["gradscaler"]["rows"]] == ["ok", "ok"]
    assert "0 failed" in done.stdout


@pytest.mark.parametrize("device", ["nonesuch", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_one_sentence(device: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"device '{device}' is .*; accepted"):
        runner.main(["gpu", "--device", device, "--out", str(tmp_path)])


def test_a_checkless_item_does_not_pass() -> None:
    assert gpu.verdict_of([]) == gpu_rows.ERROR
