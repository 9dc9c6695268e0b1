"""What is timed of the models of every task, and at which size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tests.helpers import relative_error, tensors
from yolorep.bench import of_name
from yolorep.bench.subjects import DEPLOYED, STOCK, UNFUSED
from yolorep.stock_layers import rep_blocks

SIXTY_LAYERS = 1e-4  # folded and fused in float32, and compared at the end of a fresh network


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("v5/yolov5", 640),
        ("11/yolo11-seg", 640),
        ("26/yolo26-pose", 640),  # no NMS
        ("11/yolo11-obb", 640),
        ("11/yolo11-cls", 224),
        ("26/yolo26-sem", 640),
        ("26/yolo26-depth", 640),
        ("v8/yolov8-rtdetr", 640),
    ],
)
def test_a_yaml_with_a_policy_is_timed_against_its_stock_model(name: str, pixels: int, tmp_path: Path) -> None:
    from ultralytics.utils import ROOT

    folder, stem = name.split("/")
    content = yaml.safe_load((ROOT / "cfg" / "models" / folder / f"{stem}.yaml").read_text())
    file = tmp_path / f"{stem}.yaml"
    file.write_text(yaml.safe_dump({**content, "rep": {"block": "repvgg"}, "scale": "n"}))
    subjects = of_name(str(file))
    assert (subjects.pixels, subjects.channels) == (pixels, 3)
    assert list(subjects.forms) == [UNFUSED, DEPLOYED, STOCK]
    unfused, deployed, stock = subjects.forms.values()
    assert rep_blocks(unfused)
    layers = [[tuple(p.shape) for p in form.parameters()] for form in (deployed, stock)]
    assert layers[0] == layers[1]
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        a, b = (tensors(form(x))[0] for form in (deployed, stock))
    assert relative_error(a, b) < SIXTY_LAYERS
    assert sum(isinstance(m, nn.Conv2d) for m in unfused.modules()) > len(layers[0]) / 3
