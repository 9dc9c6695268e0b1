"""`yolorep quantize` on a segmentation model of ultralytics with rep blocks: judged by its masks, and fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hosts.scenes import write_scenes
from tests.processes import yolorep

EPOCHS = 16
OPTIONS = ("imgsz=64", "batch=4", "nbs=4", "workers=0", "device=cpu", "optimizer=AdamW", "lr0=0.003", "mosaic=0")
QUIET = ("warmup_epochs=0", "val=False", "plots=False", "amp=False", "name=seg")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validated on the images of the training, which a few epochs suffice for."""
    data = write_scenes(tmp_path_factory.mktemp("scenes"), "segment", train=16)
    data.write_text(data.read_text().replace("val: images/val", "val: images/train"))
    return data


@pytest.fixture(scope="module")
def segmenter(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rep checkpoint that finds some of the rectangles: trained plain, and expanded."""
    folder = tmp_path_factory.mktemp("segmenter")
    model = ("model=yolo11n-seg.yaml", f"data={scenes}", f"epochs={EPOCHS}", f"project={folder}")
    yolorep("train", *model, *OPTIONS, *QUIET, cwd=folder)
    yolorep("expand", "seg/weights/last.pt", "rep.pt", "--float32", cwd=folder)
    return folder / "rep.pt"


def test_segmenter_is_fine_tuned_with_rounding_and_stands_in_the_same_report(
    segmenter: Path, scenes: Path, tmp_path: Path
) -> None:
    import onnx

    before = segmenter.read_bytes()
    data = scenes.with_name("other.yaml")
    data.write_text(scenes.read_text().replace("red", "rouge"))
    options = ("--scheme", "minmax", "--max-drop", 100, "--finetune", 2)
    said = yolorep("quantize", segmenter, "seg8.onnx", "--data", data, "--imgsz", 64, *options, cwd=tmp_path)
    record = json.loads((tmp_path / "seg8.onnx.json").read_text())
    assert record["figure"] == "mask mAP50-95"
    rows = {row["label"]: row for row in record["candidates"]}
    assert list(rows) == ["float32", "minmax", "float32, fine-tuned", "minmax, fine-tuned"]
    assert [row["finetuned"] for row in rows.values()] == [0, 0, 2, 2]
    assert all(row["figures"]["mask mAP50-95"] > 0 for row in rows.values())
    assert "names other classes: rouge (model: red)" in " ".join(said.split())
    assert "calibrating on 16 images" in said
    assert "2 epochs completed" in said, "the host's own log is shown"
    assert segmenter.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"seg8.onnx", "seg8.onnx.json"}
    kinds = [node.op_type for node in onnx.load(tmp_path / "seg8.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > kinds.count("Conv") > 60
    assert rows["float32, fine-tuned"]["figures"] != rows["float32"]["figures"], "nothing was trained"
    better = max(("minmax", "minmax, fine-tuned"), key=lambda label: rows[label]["figures"]["mask mAP50-95"])
    assert record["chosen"] == better
    yolorep("predict", "model=seg8.onnx", f"source={scenes.parent / 'images' / 'val'}", "imgsz=64", cwd=tmp_path)


def test_checkpoints_of_yolov5_are_refused_for_fine_tuning(coco_weights: Path, scenes: Path, tmp_path: Path) -> None:
    said = yolorep("quantize", coco_weights, "n8.onnx", "--data", scenes, "--finetune", 1, cwd=tmp_path, code=2)
    assert "is a checkpoint of yolov5; accepted: a checkpoint of ultralytics" in " ".join(said.split())
    assert not list(tmp_path.iterdir())
