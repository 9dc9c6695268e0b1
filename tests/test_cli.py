"""The command line as a user meets it: what it lists, what it says of wrong input, that it stays off the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import yolorep

COMMANDS = [
    "train",
    "val",
    "predict",
    "export",
    "yolov5",
    "expand",
    "deploy",
    "import-weights",
    "split",
    "verify",
    "bench",
    "blocks",
    "patch",
    "demo",
]


def test_help_lists_every_command(tmp_path: Path) -> None:
    printed = yolorep("--help", cwd=tmp_path)
    assert [c for c in COMMANDS if f" {c} " not in printed] == []


def test_blocks_lists_blocks_and_identities(tmp_path: Path) -> None:
    printed = yolorep("blocks", cwd=tmp_path)
    assert "repvgg" in printed
    assert "auto, conv, average, select, interpolate, none" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "model=none.pt", "data=data.yaml"], "none.pt does not exist and is not downloaded"),
        (["train", "model=yolov5q-rep.yaml", "data=data.yaml"], "'yolov5q-rep.yaml' does not exist"),
        (["train", "model=yolov5n-rep.yaml", "data=none.yaml", "device=cpu"], "'none.yaml' does not exist"),
        (["predict", "model=yolov5n-rep.yaml", "colour=red"], "'colour' is not a valid YOLO argument"),
    ],
)
def test_wrong_input_to_ultralytics_is_one_sentence(tmp_path: Path, arguments: list[str], says: str) -> None:
    printed = yolorep(*arguments, cwd=tmp_path, code=2)
    assert "Traceback" not in printed
    assert says in printed.strip().splitlines()[-1]


def test_whole_path_on_ultralytics_without_a_network(tiny_dataset: Path, tmp_path: Path) -> None:
    options = ["device=cpu", "workers=0", "imgsz=64", f"project={tmp_path}"]
    train = ["train", "model=yolov5n-rep.yaml", f"data={tiny_dataset}", "epochs=1", "batch=4", "name=rep", *options]
    yolorep(*train, cwd=tmp_path)
    best = tmp_path / "rep" / "weights" / "best.pt"
    assert "28 blocks folded" in yolorep("deploy", best, "deployed.pt", cwd=tmp_path)
    images = tiny_dataset.parent / "images" / "val"
    for model in (best, "deployed.pt"):
        yolorep("predict", f"model={model}", f"source={images}", "name=seen", *options, cwd=tmp_path)
        fused = yolorep("val", f"model={model}", f"data={tiny_dataset}", "name=valued", *options, cwd=tmp_path)
        assert "summary (fused): 84 layers, 2,503,334 parameters" in fused  # those of stock YOLOv5n
    yolorep("export", f"model={best}", "format=torchscript", *options, cwd=tmp_path)
    assert (best.parent / "best.torchscript").is_file()
