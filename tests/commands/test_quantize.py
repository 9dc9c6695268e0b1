"""`yolorep quantize` from checkpoint to a file that the hosts run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hosts.yolov5_helpers import needs_package
from tests.processes import yolorep
from yolorep.commands.quantize import Request
from yolorep.errors import UsageError

IMAGES = 16


def some_of(coco128: Path, folder: Path) -> Path:
    """A data YAML of the first images of COCO128."""
    images = sorted((coco128 / "images").rglob("*.jpg"))[:IMAGES]
    (folder / "few.txt").write_text("\n".join(map(str, images)))
    text = (coco128 / "data.yaml").read_text()
    names = text[text.index("names:") :]
    (folder / "few.yaml").write_text(f"train: few.txt\nval: few.txt\n{names}")
    return folder / "few.yaml"


@needs_package
def test_quantized_yolov5_checkpoint_keeps_its_map_and_is_run_by_its_host(
    coco_weights: Path, coco128: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nncf")
    data = some_of(coco128, tmp_path)
    options = ("--data", data, "--imgsz", 320, "--max-drop", 3)
    said = yolorep("quantize", coco_weights, "n8.onnx", *options, cwd=tmp_path)
    record = json.loads((tmp_path / "n8.onnx.json").read_text())
    rows = {row["scheme"]: row for row in record["candidates"]}
    assert {"float32", "minmax", "nncf"} <= rows.keys()
    assert rows["nncf"]["loss_points"] < 3
    assert rows["float32"]["figures"]["mAP50-95"] > 0.2
    assert rows["nncf"]["bytes"] < 0.4 * rows["float32"]["bytes"]
    assert f"calibrating on {IMAGES} images" in said
    assert "more reliable" in said
    assert record["chosen"] in said
    assert record["layer_errors"]
    done = yolorep("yolov5", "val.py", "--weights", "n8.onnx", "--data", data, "--img", 320, cwd=tmp_path)
    found = next(line.split() for line in done.splitlines() if line.split()[:1] == ["all"])
    assert float(found[-1]) == pytest.approx(
        next(row for row in record["candidates"] if row["scheme"] == record["chosen"].partition(",")[0])["figures"][
            "mAP50-95"
        ],
        abs=2e-3,
    )


@needs_package
def test_rep_checkpoint_is_deployed_and_written_as_openvino_folder(
    coco_weights: Path, coco128: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    data = some_of(coco128, tmp_path)
    options = ("--data", data, "--imgsz", 192, "--max-drop", 5)
    yolorep("expand", coco_weights, "rep.pt", cwd=tmp_path)
    said = yolorep("quantize", "rep.pt", "n8_openvino_model", *options, cwd=tmp_path)
    assert "blocks folded" in said
    assert {file.suffix for file in (tmp_path / "n8_openvino_model").iterdir()} >= {".xml", ".bin"}
    record = json.loads((tmp_path / "n8_openvino_model.json").read_text())
    assert [row["scheme"] for row in record["candidates"]] == ["float32", "nncf"]


@needs_package
def test_too_large_a_loss_keeps_layers_in_float_and_is_exit_code_1(
    coco_weights: Path, coco128: Path, tmp_path: Path
) -> None:
    data = some_of(coco128, tmp_path)
    options = ("--data", data, "--imgsz", 160, "--scheme", "symmetric-tensor", "--max-drop", 0)
    said = yolorep("quantize", coco_weights, "n8.onnx", *options, cwd=tmp_path, code=1)
    record = json.loads((tmp_path / "n8.onnx.json").read_text())
    assert [len(row["floats"]) for row in record["candidates"]] == [0, 0, 1, 2, 4, 8]
    assert "more than the tolerated 0" in " ".join(said.split())
    assert (tmp_path / "n8.onnx").is_file()


@pytest.mark.parametrize("name", ["n8.pt", "n8", "n8.onnx.bak"])
def test_other_output_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.onnx, or in _openvino_model"):
        _ = Request(tmp_path / "a.pt", tmp_path / name, tmp_path / "d.yaml").target


def test_refusals_write_nothing(
    tmp_path: Path, coco_weights: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("data") / "data.yaml"
    other.write_text("val: images\nnames: [a]\n")
    for out, data, said in (
        ("n8.onnx", "absent.yaml", "absent.yaml does not exist"),
        ("absent/n8.onnx", str(tiny_dataset), "is not a folder; create it first"),
        ("n8.onnx", str(tiny_dataset), "has 2 classes, the model 80"),
        ("n8.onnx", str(other), "has no train: entry"),
    ):
        printed = yolorep("quantize", coco_weights, out, "--data", data, cwd=tmp_path, code=2)
        assert said in " ".join(printed.split())
        assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())
