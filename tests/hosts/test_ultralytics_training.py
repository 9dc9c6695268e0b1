"""Training with ultralytics rebuilds the model from its YAML: the branches are there before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from yolorep import deploy, expand, verify
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")

ROWS = 28  # blocks of yolov5n-rep.yaml
POLICY = 48  # blocks of a stock YOLOv5n expanded throughout


class InterruptionError(Exception):
    """A training that stops in its first epoch, as when the machine goes down."""


def train(model: Any, data: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Train for an epoch on the CPU; what the trainer's model was before its first step and after its last."""
    seen: dict[str, Any] = {}

    def state(trainer: Any) -> dict[str, torch.Tensor]:
        return {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}

    def on_train_start(trainer: Any) -> None:
        seen.update(blocks=len(rep_blocks(trainer.model)), epoch=trainer.start_epoch, save=trainer.wdir)
        seen["state"] = state(trainer)

    model.add_callback("on_train_start", on_train_start)
    model.add_callback("on_train_end", lambda trainer: seen.update(after=state(trainer)))
    quiet = {"workers": 0, "device": "cpu", "plots": False, "amp": False, "verbose": False}
    steps = {"imgsz": 64, "batch": 4, "nbs": 4, "epochs": 1, "optimizer": "SGD", "warmup_epochs": 0}
    model.train(data=str(data), project=str(folder), **{**quiet, **steps, **options})
    return {**seen, "yolo": model}


def load(path: Path) -> Any:
    return ultralytics.YOLO(path)


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A rep model trained from its YAML for one epoch."""
    return train(ultralytics.YOLO("yolov5n-rep.yaml"), tiny_dataset, tmp_path_factory.mktemp("rows"))


def test_training_from_yaml_keeps_the_branches(trained: dict[str, Any]) -> None:
    assert trained["blocks"] == ROWS
    for name in ("last.pt", "best.pt"):
        assert len(rep_blocks(load(trained["save"] / name).model)) == ROWS


def test_a_trained_checkpoint_detects_as_its_deployed_form(trained: dict[str, Any], tiny_dataset: Path) -> None:
    image = tiny_dataset.parent / "images" / "val" / "0.png"
    rep, stock = load(trained["save"] / "last.pt"), load(trained["save"] / "last.pt")
    stock.model = deploy(stock.model.float().eval())
    options = {"imgsz": 64, "conf": 0.0001, "device": "cpu", "verbose": False}
    boxes, deployed = (model.predict(image, **options)[0].boxes for model in (rep, stock))
    assert len(boxes) == len(deployed) > 0
    assert torch.equal(boxes.cls, deployed.cls)
    assert torch.allclose(boxes.xyxy, deployed.xyxy, atol=1e-2)
    assert torch.allclose(boxes.conf, deployed.conf, atol=1e-5)


def test_a_model_is_deployed_and_saved_after_its_training(trained: dict[str, Any], tmp_path: Path) -> None:
    """The `YOLO` that trained holds a trainer and, after predict, a lock: neither can be copied."""
    yolo = trained["yolo"]
    yolo.predict(torch.rand(1, 3, 64, 64), device="cpu", verbose=False)
    deploy(yolo).save(tmp_path / "deployed.pt")
    assert rep_blocks(load(tmp_path / "deployed.pt").model) == []
    assert yolo.trainer is not None
    assert verify(load(trained["save"] / "best.pt").model, deploy(yolo).model).ok


def test_training_learns_in_every_branch(trained: dict[str, Any]) -> None:
    before, after = trained["state"], trained["after"]
    branches = [key for key in before if ".branch_" in key and key.endswith(("weight", "bias"))]
    assert branches
    assert [key for key in branches if torch.equal(before[key], after[key])] == []


def test_resume_keeps_the_branches(tiny_dataset: Path, tmp_path: Path) -> None:
    def stop(trainer: Any) -> None:
        raise InterruptionError

    model = ultralytics.YOLO("yolov5n-rep.yaml")
    model.add_callback("on_model_save", stop)
    with pytest.raises(InterruptionError):
        train(model, tiny_dataset, tmp_path, epochs=2)
    last = next(tmp_path.rglob("last.pt"))
    seen = train(load(last), tiny_dataset, tmp_path, epochs=2, resume=True)
    assert (seen["blocks"], seen["epoch"]) == (ROWS, 1)
    assert len(rep_blocks(load(last).model)) == ROWS


def test_fine_tuning_an_expanded_model_keeps_branches_and_weights(tiny_dataset: Path, tmp_path: Path) -> None:
    """The data has another number of classes than the checkpoint, so the host builds the model anew."""
    stock = ultralytics.YOLO("yolov5n.yaml")
    before = {key: value.clone() for key, value in stock.model.state_dict().items()}
    stock.model = expand(stock.model)
    stock.save(tmp_path / "expanded.pt")
    seen = train(load(tmp_path / "expanded.pt"), tiny_dataset, tmp_path)
    assert seen["blocks"] == POLICY
    assert len(rep_blocks(load(seen["save"] / "last.pt").model)) == POLICY
    backbone = [key for key in before if int(key.split(".")[1]) < 24 and key.endswith("conv.weight")]
    assert all(torch.allclose(before[key], seen["state"][key], atol=1e-3) for key in backbone)


def test_fine_tuning_a_deployed_model_is_stock_training(
    trained: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    model = load(trained["save"] / "last.pt")
    model.model = deploy(model.model.float().eval())
    model.save(tmp_path / "deployed.pt")
    seen = train(load(tmp_path / "deployed.pt"), tiny_dataset, tmp_path)
    assert seen["blocks"] == 0
    stock = ultralytics.YOLO("yolov5n.yaml").model.state_dict()
    assert list(seen["state"]) == list(stock)
