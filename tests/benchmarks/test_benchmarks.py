"""The benchmarks' runner, and the record that every benchmark writes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import runner
from benchmarks.runner import TABLE, Recorder
from tests.helpers import ROOT
from yolorep.bench import interleave, record, timing
from yolorep.bench.record import replace_together
from yolorep.errors import UsageError

HEAD = {"date", "script", "arguments", "git", "machine", "packages", "device"}
FLAGS = {"threads", "cudnn_benchmark", "cudnn_deterministic", "tf32_convolutions", "tf32_matmul"}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.002)


@pytest.mark.parametrize("name", TABLE)
def test_every_benchmark_of_the_table_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        runner.run(name, ["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"python -m benchmarks {name}" in printed
    assert "--device" in printed
    assert "--out" in printed


def test_the_table_names_every_module_with_options() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def add_options" in path.read_text()}
    assert modules == {benchmark.module for benchmark in TABLE.values()}


@pytest.mark.parametrize(("arguments", "says"), [([], "usage:"), (["--help"], "eligibility")])
def test_without_a_name_the_runner_lists_the_table(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        runner.main(arguments)
    assert end.value.code == (0 if arguments else 2)
    assert says in capsys.readouterr().out


def test_an_unknown_benchmark_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match=r"there is no benchmark 'speed'; accepted: fps, .*gpu"):
        runner.main(["speed"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["training", "repvgg", "--shapes", "1x8x8", "--layouts", "contiguous", "--autocast", "bfloat16"],
        ["blocks", "--batch", "1", "--imgsz", "16", "--channels", "8"],
        ["eligibility", "yolov8n.yaml", "--imgsz", "64", "--batch", "2"],
        ["growth", "--network", "yolov5n-rep.yaml", "--imgsz", "64", "--batch", "1", "--backends", "eager"],
        ["by-hand", "yolov5n.yaml", "--imgsz", "64", "--backends", "eager", "channels_last"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_benchmark_writes_one_description_of_the_machine(arguments: list[str], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        runner.main([*arguments, "--rounds", "2", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(before)
    written = json.loads((tmp_path / f"{arguments[0]}.json").read_text())
    assert written.keys() >= {*HEAD, "rounds", "autocast", "results"}
    assert written["script"] == f"benchmarks {arguments[0]}"
    assert written["machine"].keys() >= FLAGS | {"processor", "gpu", "cudnn", "allocator"}
    assert written["machine"]["threads"] == 1
    assert written["autocast"] == ("bfloat16" if arguments[0] == "training" else written["autocast"])


def test_a_record_holds_the_settings_of_the_measurement_and_not_those_of_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    timed = interleave({"a": lambda: None}, 2, torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert record.describe("test", "cpu", timed.flags)["machine"]["cudnn_benchmark"] is True
    assert record.describe("test", "cpu")["machine"]["cudnn_benchmark"] is False


def test_a_measurement_from_a_changed_checkout_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "44d992d", "status": " M yolorep/bench/record.py"}
    monkeypatch.setattr(record, "_git", lambda folder, command, *rest: answers[command])
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert record.git_commit() == "44d992d+"


def test_a_recorder_replaces_everything_that_belongs_to_a_record(tmp_path: Path) -> None:
    recorder = Recorder("fps", tmp_path / "fps", "cpu")
    for text in ("old", "new"):
        recorder.write({"results": text}, also={".txt": text})
    assert json.loads((tmp_path / "fps.json").read_text())["results"] == (tmp_path / "fps.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fps.json", "fps.txt"]


def test_files_that_belong_together_are_old_after_a_failure(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "a.png"]
    replace_together(dict.fromkeys(files, "old"))

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match=r"a\.png cannot be written: No space left on device"):
        replace_together({files[0]: "new", files[1]: fail})
    assert [file.read_text() for file in files] == ["old", "old"]
    assert len(list(tmp_path.iterdir())) == 2


def killed_at(moment: int, folder: Path) -> bool:
    """Replace three files in a child process that kills itself at the n-th call that changes the folder."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [moment]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    os.replace, Path.unlink, Path.write_text = map(counted, (os.replace, Path.unlink, Path.write_text))  # type: ignore[assignment, method-assign]
    replace_together({folder / name: "new" for name in TRIPLE})
    os._exit(0)


TRIPLE = ("a.json", "a.png", "a.md")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_kill_at_any_moment_never_leaves_a_new_file_beside_an_old_one(tmp_path: Path) -> None:
    moment, killed = 0, True
    while killed:
        moment += 1
        folder = tmp_path / str(moment)
        replace_together({folder / name: "old" for name in TRIPLE})
        killed = killed_at(moment, folder)
        visible = [file for file in folder.iterdir() if not file.name.startswith(".")]
        assert len({file.read_text() for file in visible}) == 1, (moment, visible)
        assert (folder / "a.json").exists()
        replace_together({folder / name: "newer" for name in TRIPLE})
        assert sorted(file.name for file in folder.iterdir()) == sorted(TRIPLE)
        assert {file.read_text() for file in folder.iterdir()} == {"newer"}
    assert moment > 8  # three files written, two removed, three renamed, and the removal of leftovers
