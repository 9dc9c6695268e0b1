"""The benchmark of blocks in 8 bits: which checkpoints it takes, and what its table says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import int8
from benchmarks.runner import Recorder
from yolorep.bench.record import read_json, write_json
from yolorep.commands.quantize import Request
from yolorep.compare.plan import read
from yolorep.errors import UsageError

LOSSES = {"minmax": (0.9, 5.0), "nncf": (0.3, 6.0), "percentile": (0.1, 4.0)}  # points and milliseconds


def candidate(scheme: str, loss: float, ms: float, floats: tuple[str, ...] = ()) -> dict[str, Any]:
    label = f"{scheme}, {len(floats)} layer in float" if floats else scheme
    figures = {"mAP50-95": 0.5 - loss / 100}
    entry = {"scheme": scheme, "label": label, "figures": figures, "bytes": 1, "floats": floats}
    return {**entry, "finetuned": 0, "seconds": ms / 1000, "loss_points": loss}


REPORT = {
    "figure": "mAP50-95",
    "candidates": [
        candidate("float32", 0, 9.0),
        *(candidate(scheme, *figures) for scheme, figures in LOSSES.items()),
        candidate("percentile", -0.2, 7.0, ("conv",)),
    ],
}


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison of two arms and one seed, both trained, stock for the time of the other too."""
    plan = read([("model", "yolov5n.yaml"), ("data", "data.yaml"), ("seeds", 1), ("epochs", 2)], ["csla"])
    folder = tmp_path / "cells"
    for run in ("stock-seed0-lr1-2", "stock-seed0-lr1-3", "csla-seed0-lr4-2"):
        (folder / run).mkdir(parents=True)
        write_json(folder / run / "result.json", {})
    write_json(folder / "plan.json", plan.record())
    return folder


def test_the_checkpoints_at_equal_epochs_are_taken(comparison: Path) -> None:
    found = [(arm.name, seed, file.relative_to(comparison)) for arm, seed, file, _ in int8.checkpoints_of(comparison)]
    assert found == [
        ("stock", 0, Path("stock-seed0-lr1-2/train/weights/last.pt")),
        ("csla", 0, Path("csla-seed0-lr4-2/train/weights/last.pt")),
    ]


def test_a_folder_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no plan\.json; accepted: a folder of yolorep compare"):
        list(int8.checkpoints_of(tmp_path))


def test_the_default_is_the_fastest_of_the_commands_schemes_within_half_a_point() -> None:
    assert int8.default_of(REPORT) == {"default": "nncf", "default_loss": pytest.approx(0.3)}


def test_a_checkpoint_is_quantized_once_and_the_table_has_its_losses(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def quantize(request: Request, _: object) -> bool:
        asked.append(request)
        write_json(request.out.with_name(f"{request.out.name}.json"), REPORT)
        return True

    monkeypatch.setattr(int8, "quantize_file", quantize)
    schemes = list(LOSSES)
    options = argparse.Namespace(comparisons=[comparison], schemes=schemes, images=9, work=tmp_path / "work")
    recorder = Recorder("int8", tmp_path / "int8", "cpu")
    for _ in range(2):
        int8.run(options, recorder)
    assert [request.source.parent.parent.parent.name for request in asked] == ["stock-seed0-lr1-2", "csla-seed0-lr4-2"]
    assert (asked[0].imgsz, asked[0].images, asked[0].max_drop, asked[0].schemes) == (640, 9, 0, tuple(schemes))
    assert [row["arm"] for row in read_json(recorder.path(".json"))["results"]] == ["stock", "csla"]
    table = recorder.path(".md").read_text()
    assert "| block | float32 | minmax | nncf | percentile | worst layers in float | default |" in table
    assert "| `csla` | 50.00 | +0.90 | +0.30 | +0.10 | -0.20 (percentile, 1 layer in float) | +0.30 (nncf) |" in table
