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
from yolorep import HostError, VerifyError
from yolorep.hosts import evaluate, suspended_fuse
from yolorep.hosts.ultralytics import evaluator
from yolorep.stock_layers import rep_blocks


def test_image_files_accepts_a_file_and_a_folder(tiny_dataset: Path) -> None:
    folder = tiny_dataset.parent / "images" / "val"
    assert len(evaluate.image_files(folder)) == 4
    assert evaluate.image_files(folder / "0.png") == [folder / "0.png"]
    with pytest.raises(VerifyError, match="neither an image nor a folder"):
        evaluate.image_files(tiny_dataset.parent / "labels")


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_images_that_the_host_cannot_read_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    from ultralytics import YOLO

    YOLO("yolov5n.yaml").save(tmp_path / "model.pt")
    (tmp_path / "0.png").write_bytes(content)
    checkpoint = evaluate.evaluator(tmp_path / "model.pt", imgsz=64)
    with pytest.raises(VerifyError, match=r"0.png cannot be read as an image"):
        evaluate.compare_images(checkpoint, checkpoint, tmp_path)


class Refusing:
    """A checkpoint whose host raises for whatever it is given."""

    path, task, imgsz = Path("model.pt"), "detect", 64

    def __init__(self, error: Exception) -> None:
        self.error = error

    def answer(self, image: Path) -> dict[str, torch.Tensor]:
        raise self.error

    def figures(self, data: Path) -> dict[str, float]:
        raise self.error


@pytest.mark.parametrize("error", [AssertionError("Image Not Found x"), RuntimeError("Sizes must match"), TypeError()])
def test_what_a_host_refuses_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    image, data = tmp_path / "a.jpg", tmp_path / "data.yaml"
    image.touch(), data.touch()
    reason = str(error) or "TypeError"
    with pytest.raises(VerifyError, match=f"model.pt has no answer to .*a.jpg: {reason}; accepted: images"):
        evaluate.compare_images(Refusing(error), Refusing(error), image)
    with pytest.raises(VerifyError, match=f"data.yaml cannot be validated with: {reason}; accepted"):
        evaluate.figures(Refusing(error), data)


def test_a_host_without_known_figures_is_refused(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models without a figure would be alike."""
    from ultralytics import YOLO

    YOLO("yolov5n.yaml").save(tmp_path / "model.pt")
    monkeypatch.setattr(evaluator, "FIGURES", {"metrics/of old": "mAP50"})
    with pytest.raises(HostError, match="none of the figures of detect, but metrics/precision"):
        evaluate.figures(evaluate.evaluator(tmp_path / "model.pt", imgsz=64), tiny_dataset)


def test_unfused_keeps_the_branches_and_ends() -> None:
    from ultralytics.nn.tasks import BaseModel, DetectionModel

    fuse = BaseModel.fuse
    model = DetectionModel("yolov5n-rep.yaml", verbose=False).eval()
    with suspended_fuse.unfused():
        assert model.fuse(verbose=False) is model
        assert len(rep_blocks(model)) == 28
    assert BaseModel.fuse is fuse


def test_unfused_passes_over_a_module_that_is_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.nn.tasks  # noqa: F401

    monkeypatch.setitem(sys.modules, "models.yolo", ModuleType("models.yolo"))  # a package of another project
    monkeypatch.setattr(
        suspended_fuse, "attached", lambda: ["models.yolo", "ultralytics.nn.tasks", "yolov5.models.yolo"]
    )
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
def test_figures_do_not_depend_on_how_busy_the_machine_is(coco_weights: Path, few_coco: Path, tmp_path: Path) -> None:
    printed = run_python(BUSY, coco_weights, few_coco / "data.yaml", cwd=tmp_path)
    figures = [float(word) for word in printed.splitlines()[-1].split()]
    assert figures[2:] == pytest.approx(figures[:2], abs=1e-6)
    assert figures[0] > 0.05


@needs_package
def test_coco_checkpoint_keeps_boxes_and_map_when_expanded_and_deployed(
    coco_weights: Path, few_coco: Path, tmp_path: Path
) -> None:
    yolorep("expand", coco_weights, "expanded.pt", cwd=tmp_path)
    yolorep("deploy", "expanded.pt", "deployed.pt", cwd=tmp_path)
    options = ["--images", few_coco / "images", "--data", few_coco / "data.yaml", "--imgsz", 320]
    for other in ("expanded.pt", "deployed.pt"):
        printed = yolorep("verify", coco_weights, other, *options, cwd=tmp_path)  # exit code 0: all within tolerance
        assert "on 24 images: 0 differ" in " ".join(printed.split())
        told = re.search(r"mAP50-95 +([0-9.]+) →", printed)
        assert told is not None
        assert float(told[1]) > 0.2
