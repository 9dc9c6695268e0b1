"""Checkpoints that commit 44d992d wrote, before the modules were moved: they load, predict, resume and deploy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ROOT, assert_same, run_python
from yolorep import deploy, verify
from yolorep.cli import main
from yolorep.stock_layers import rep_blocks

BLOCKS, TRAINING = (ROOT / "tests" / "assets" / f"{name}-44d992d.pt" for name in ("blocks", "training"))
RESUME = """
import json, sys
import yolorep
from ultralytics import YOLO
from yolorep.stock_layers import rep_blocks
seen = {}
model = YOLO(sys.argv[1])
model.add_callback("on_train_start", lambda t: seen.update(epoch=t.start_epoch, blocks=len(rep_blocks(t.model))))
model.train(resume=True)
print(json.dumps({**seen, "after": len(rep_blocks(YOLO(sys.argv[1]).model))}))
"""


@pytest.fixture
def training(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A run that stopped after the first of two epochs, with its data set where the checkpoint names it."""
    shutil.copytree(tiny_dataset.parent, tmp_path / "data")
    last = tmp_path / "runs" / "a" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    shutil.copy2(TRAINING, last)
    return last


def test_every_block_of_an_earlier_file_computes_what_it_did_and_folds() -> None:
    """One block of each kind and identity, with the outputs that the earlier code computed."""
    saved = torch.load(BLOCKS, weights_only=False)
    assert len(saved["blocks"]) == 19
    for name, block in saved["blocks"].items():
        assert_same(saved["y"][name], block(saved["x"]))
        if name != "sum":
            assert_same(saved["y"][name], deploy(block)(saved["x"]))


def test_an_earlier_checkpoint_predicts_and_deploys(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    rep: Any = ultralytics.YOLO(training)
    assert len(rep_blocks(rep.model)) == 10
    image = next((training.parents[3] / "data" / "images" / "val").iterdir())
    options = {"imgsz": 64, "conf": 0.0001, "device": "cpu", "verbose": False}
    boxes = rep.predict(image, **options)[0].boxes
    assert len(boxes) > 0
    out = training.with_name("deployed.pt")
    monkeypatch.setattr("sys.argv", ["yolorep", "deploy", str(training), str(out)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    stock: Any = ultralytics.YOLO(out)
    assert rep_blocks(stock.model) == []
    assert torch.equal(stock.predict(image, **options)[0].boxes.cls, boxes.cls)
    assert verify(ultralytics.YOLO(training).model, deploy(ultralytics.YOLO(training).model)).ok


def test_an_earlier_training_resumes(training: Path) -> None:
    pytest.importorskip("ultralytics")
    printed = run_python(RESUME, training, cwd=training.parents[3])
    assert json.loads(printed.splitlines()[-1]) == {"epoch": 1, "blocks": 10, "after": 10}
