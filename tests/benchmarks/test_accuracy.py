"""The benchmark of accuracy goes on from the finished runs of another machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks.runner import Recorder
from yolorep.bench.record import read_json, write_json


def finish(run: Path) -> None:
    (run / "train" / "weights").mkdir(parents=True)
    (run / "train" / "weights" / "last.pt").write_bytes(b"weights")
    for name in accuracy.NEEDED:
        (run / name).write_text(run.name)


def listing(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_finished_runs_are_copied_without_weights_once(tmp_path: Path) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    finish(runs / "stock-seed0-lr1-2")
    (runs / "csla-seed0-lr1-2").mkdir()  # killed before its result
    (runs / "plan.json").write_text("{}")
    accuracy.copy_finished(runs, kept)
    assert listing(kept) == {"plan.json", *(f"stock-seed0-lr1-2/{name}" for name in accuracy.NEEDED)}
    (kept / "stock-seed0-lr1-2" / "result.json").write_text("first")
    accuracy.copy_finished(runs, kept)
    assert (kept / "stock-seed0-lr1-2" / "result.json").read_text() == "first"


def test_a_comparison_that_is_killed_leaves_its_finished_runs_to_the_next_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[set[str]] = []

    def compare(arguments: Sequence[str], _: object) -> None:
        runs = Path(arguments[-1].removeprefix("out="))
        started.append({file.parent.name for file in runs.glob("*/result.json")})
        if len(started) == 1:
            finish(runs / "stock-seed0-lr1-2")
            raise KeyboardInterrupt
        write_json(runs / "compare.json", {name: name for name in ("plan", "rows", "findings", "sweep", "runs")})
        (runs / "compare.png").write_bytes(b"plot")

    monkeypatch.setattr(accuracy.compare, "run", compare)
    recorder = Recorder("accuracy", tmp_path / "accuracy", "cpu")
    given = {"arguments": ["model=yolov5n.yaml"], "kept": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        accuracy.run(argparse.Namespace(runs=tmp_path / "one machine", **given), recorder)
    accuracy.run(argparse.Namespace(runs=tmp_path / "another", **given), recorder)
    assert started == [set(), {"stock-seed0-lr1-2"}]
    assert read_json(recorder.path(".json"))["rows"] == "rows"
