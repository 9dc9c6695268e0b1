"""`yolorep tune` calls `YOLO.tune`: ultralytics' command has no such mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import yolorep
from yolorep.stock_layers import rep_blocks


def test_a_rep_model_is_tuned(tiny_dataset: Path, tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    given = ["model=yolov5n-rep.yaml", f"data={tiny_dataset}", "iterations=1", "epochs=1", "imgsz=32", "batch=4"]
    quick = ["device=cpu", "workers=0", "plots=False", f"project={tmp_path / 'runs'}", "name=tuned"]
    yolorep("tune", *given, *quick, cwd=tmp_path)
    (best,) = (tmp_path / "runs" / "tuned").rglob("best.pt")
    assert len(rep_blocks(ultralytics.YOLO(best).model)) == 28
    assert next((tmp_path / "runs" / "tuned").rglob("best_hyperparameters.yaml")).is_file()
