"""Fine-tuning for 8 bits: the trainer's arguments, the exported weights, and the message of a failed training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from torch import nn
from torch.nn.utils import parametrize

from tests.helpers import randomize_
from yolorep.calibration import calibration_files
from yolorep.errors import HostError
from yolorep.hosts.ultralytics.exporter import export_onnx
from yolorep.quantization import finetuning
from yolorep.quantization.finetuning import finetuned_onnx


@pytest.fixture(params=["yolov8n.yaml"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from ultralytics import YOLO

    yolo: Any = YOLO(request.param)
    randomize_(yolo.model)
    source = tmp_path / "source"
    source.mkdir()
    yolo.save(source / "plain.pt")
    return source / "plain.pt"


def run(file: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def finetuned(checkpoint: Path, data: Path, folder: Path) -> Path:
    return finetuned_onnx(checkpoint, folder, data, calibration_files(data, 2), 64, 1)


@pytest.mark.parametrize("checkpoint", ["yolov8n.yaml", "yolov9t.yaml", "yolov10n.yaml"], indirect=True)
def test_the_trainer_gets_the_fused_network_with_its_convolutions_rounded(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it returns is exported without the rounding: nothing is trained here, so it is the source's function."""

    def train(yolo: Any, *_: Any) -> Any:
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in yolo.model.modules())
        layers = {name: layer for name, layer in yolo.model.named_modules() if isinstance(layer, nn.Conv2d)}
        plain = [name for name, layer in layers.items() if not parametrize.is_parametrized(layer, "weight")]
        assert [name.partition(".dfl.")[2] for name in plain] == ["conv"]
        assert all(parameter.requires_grad for parameter in yolo.model.parameters())
        return yolo.model

    monkeypatch.setattr(finetuning, "_train", train)
    expected = run(export_onnx(checkpoint, tmp_path, 64))
    found = run(finetuned(checkpoint, tiny_dataset, tmp_path))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_weights_that_are_no_longer_finite_get_a_sentence(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(yolo: Any, *_: Any) -> Any:
        yolo.model.model[0].conv.bias.data.fill_(float("nan"))
        return yolo.model

    monkeypatch.setattr(finetuning, "_train", train)
    with pytest.raises(HostError, match=r"plain\.pt on .* diverged: its weights are no longer finite"):
        finetuned(checkpoint, tiny_dataset, tmp_path)


def test_what_the_trainer_raises_gets_a_sentence(checkpoint: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(tiny_dataset.read_text().replace("train: images/train", "train: images/none"))
    with pytest.raises(HostError, match=r"ultralytics cannot fine-tune .*plain\.pt on .*data\.yaml: "):
        finetuned_onnx(checkpoint, tmp_path, data, calibration_files(tiny_dataset, 2), 64, 1)
