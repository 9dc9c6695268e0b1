"""Checkpoints answer for images and data sets as they are stored, whatever their task."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import needs_package
from tests.processes import yolorep
from yolorep import VerifyError
from yolorep.hosts import evaluate, unfused
from yolorep.selection import rep_blocks


def test_image_files_accepts_a_file_and_a_folder(tiny_dataset: Path) -> None:
    folder = tiny_dataset.parent / "images" / "val"
    assert len(evaluate.image_files(folder)) == 4
    assert evaluate.image_files(folder / "0.png") == [folder / "0.png"]
    with pytest.raises(VerifyError, match="neither an image nor a folder"):
        evaluate.image_files(tiny_dataset.parent / "labels")


def test_unfused_keeps_the_branches_and_ends() -> None:
    from ultralytics.nn.tasks import BaseModel, DetectionModel

    fuse = BaseModel.fuse
    model = DetectionModel("yolov5n-rep.yaml", verbose=False).eval()
    with unfused.unfused():
        assert model.fuse(verbose=False) is model
        assert len(rep_blocks(model)) == 28
    assert BaseModel.fuse is fuse


def test_unfused_passes_over_a_module_that_is_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.nn.tasks  # noqa: F401

    monkeypatch.setitem(sys.modules, "models.yolo", ModuleType("models.yolo"))  # a package of another project
    monkeypatch.setattr(unfused, "attached", lambda: ["models.yolo", "ultralytics.nn.tasks", "yolov5.models.yolo"])
    monkeypatch.delitem(sys.modules, "yolov5.models.yolo", raising=False)
    test_unfused_keeps_the_branches_and_ends()


def test_figures_are_of_one_image_at_a_time(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics import YOLO
    from ultralytics.utils import nms

    YOLO("yolov5n.yaml").save(tmp_path / "model.pt")
    suppress, batches = nms.non_max_suppression, []

    def watch(prediction: list[torch.Tensor], *args: object, **kwargs: object) -> object:
        batches.append(len(prediction[0]))
        return suppress(prediction, *args, **kwargs)

    monkeypatch.setattr(nms, "non_max_suppression", watch)
    evaluate.figures(evaluate.evaluator(tmp_path / "model.pt", imgsz=64), tiny_dataset)
    assert batches[-4:] == [1, 1, 1, 1]


BUSY = """
import itertools, sys, time
from pathlib import Path
from yolorep.hosts.evaluate import evaluator, figures
weights, data = map(Path, sys.argv[1:])
checkpoint = evaluator(weights, imgsz=160)
found = [figures(checkpoint, data)]
ticks = itertools.count(0, 100)
time.time = lambda: next(ticks)
found.append(figures(checkpoint, data))
print(*found[0].values(), *found[1].values())
"""


@needs_package
def test_figures_do_not_depend_on_how_busy_the_machine_is(coco_weights: Path, coco128: Path, tmp_path: Path) -> None:
    printed = run_python(BUSY, coco_weights, coco128 / "data.yaml", cwd=tmp_path)
    figures = [float(word) for word in printed.splitlines()[-1].split()]
    assert figures[2:] == pytest.approx(figures[:2], abs=1e-6)
    assert figures[0] > 0.05


@needs_package
def test_coco_checkpoint_keeps_boxes_and_map_when_expanded_and_deployed(
    coco_weights: Path, coco128: Path, tmp_path: Path
) -> None:
    yolorep("expand", coco_weights, "expanded.pt", cwd=tmp_path)
    yolorep("deploy", "expanded.pt", "deployed.pt", cwd=tmp_path)
    options = ["--images", coco128 / "images", "--data", coco128 / "data.yaml", "--imgsz", 320]
    for other in ("expanded.pt", "deployed.pt"):
        printed = yolorep("verify", coco_weights, other, *options, cwd=tmp_path)  # exit code 0: all within tolerance
        assert "on 128 images: 0 differ" in " ".join(printed.split())
        told = re.search(r"mAP50-95 +([0-9.]+) →", printed)
        assert told is not None
        assert float(told[1]) > 0.2
