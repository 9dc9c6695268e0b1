"""`python -m benchmarks starts`: the tree that it trains in, and its record; the trainings need a YOLOv5 checkout."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import runner
from benchmarks.starts import STOCK, copied_tree, record_of
from tests.hosts.yolov5_helpers import TREES, needs_trees


def test_the_tree_is_copied_and_steps_after_every_batch(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "train.py").write_text("nbs = 64  # nominal batch size\n")
    assert copied_tree(tree, tmp_path / "copy", 8) == tmp_path / "copy"
    assert (tmp_path / "copy" / "train.py").read_text() == "nbs = 8  # nominal batch size\n"
    assert (tree / "train.py").read_text() == "nbs = 64  # nominal batch size\n"


def test_a_folder_that_is_no_tree_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"train.py has no line `nbs = 64`; accepted: a checkout of YOLOv5"):
        runner.main(["starts", "data.yaml", "--weights", "a.pt", "--tree", str(tmp_path), "--runs", str(tmp_path)])


def test_the_record_has_the_differences_of_the_pairs_that_are_there() -> None:
    scores = {(STOCK, 0): 0.50, ("split", 0): 0.52, (STOCK, 1): 0.40, ("split", 1): 0.41, (STOCK, 2): 0.1}
    runs = [{"arm": arm, "seed": seed, "mAP50-95": value} for (arm, seed), value in scores.items()]
    shared = {
        "epochs": 1,
        "sweep": None,
        "batch": 8,
        "imgsz": 32,
        "threads": 1,
        "data": Path("d/data.yaml"),
        "weights": Path("w.pt"),
    }
    record = record_of(Namespace(arms=[STOCK, "split", "twin"], seeds=[0, 1, 2], **shared), {}, {}, runs)
    assert record["differences"].keys() == {"split"}
    assert record["differences"]["split"]["difference"] == pytest.approx(0.015)
    assert record["differences"]["split"]["seeds"] == 2


@needs_trees
def test_two_arms_are_trained_and_recorded(tiny_dataset: Path, tmp_path: Path, coco_weights: Path) -> None:
    given = [
        "starts",
        tiny_dataset,
        "--weights",
        coco_weights,
        "--tree",
        TREES[-1],
        "--arms",
        STOCK,
        "twin",
        "--lr",
        0.01,
    ]
    given += ["--seeds", 0, "--epochs", 1, "--imgsz", 64, "--runs", tmp_path / "runs", "--out", tmp_path]
    runner.main(list(map(str, given)))
    record = json.loads((tmp_path / "starts.json").read_text())
    assert [one["arm"] for one in record["runs"]] == [STOCK, "twin"]
    assert record["differences"]["twin"]["seeds"] == 1
