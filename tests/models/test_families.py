"""Model families and tasks of ultralytics: what becomes of each when it is expanded, deployed and fused.

`benchmarks/families.py` measures all of them; here is one of each kind.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_same, assert_same_outputs, randomize_, tensors
from yolorep import deploy, expand
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")

FAMILIES = (
    "yolov3-tiny.yaml",
    "yolov8n-ghost.yaml",
    "yolov8n-worldv2.yaml",
    "yolov8n-rtdetr.yaml",
    "yolov9t.yaml",  # RepConv
    "yolov10n.yaml",  # two heads, RepVGGDW
    "yolo11n-seg.yaml",
    "yolo11n-pose.yaml",
    "yolo11n-cls.yaml",
    "yolo12n-obb.yaml",
    "yoloe-11n.yaml",
    "yolo26n.yaml",  # two heads
    "yolo26n-depth.yaml",
    "yolo26n-sem.yaml",
)


def build(yaml: str) -> Any:
    """ultralytics' model of a YAML, in float64 and evaluation mode, with random batch norms."""
    kinds = {"rtdetr": ultralytics.RTDETR, "world": ultralytics.YOLOWorld, "yoloe": ultralytics.YOLOE}
    kind = next((kind for word, kind in kinds.items() if word in yaml), ultralytics.YOLO)
    return randomize_(kind(yaml).model).eval().double()


def layout(model: nn.Module) -> tuple[list, Counter]:
    """State-dict keys and shapes in order, and the classes of the layers."""
    return [(k, tuple(v.shape)) for k, v in model.state_dict().items()], Counter(map(type, model.modules()))


def norms(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


def prediction(output: Any) -> Tensor:
    """What the host decodes; its fuse drops a second head's raw output, which comes after."""
    return tensors(output)[0]


@pytest.mark.parametrize("yaml", FAMILIES)
@torch.no_grad()
def test_family_there_and_back(yaml: str) -> None:
    stock, image = build(yaml), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    rep = expand(stock)
    blocks = rep_blocks(rep)
    assert len(blocks) >= 10
    assert_same_outputs(stock(image), rep(image))
    for name in blocks:
        randomize_(rep.get_submodule(name))
    trained, deployed = rep(image), deploy(rep)
    assert_same_outputs(trained, deployed(image))
    assert layout(deployed) == layout(stock)
    fused = rep.fuse(verbose=False)
    assert_same(prediction(trained), prediction(fused(image)))
    assert norms(fused) == norms(stock.fuse(verbose=False))
    assert not any(type(m).__module__.startswith("yolorep") for m in fused.modules())
