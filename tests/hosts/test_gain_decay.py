"""Gains of branches do not decay in the optimizers that the hosts build; kernels do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from torch import nn
from torch.optim import Optimizer

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import needs_package
from yolorep import Conv_C3, expand
from yolorep.blocks import BLOCKS

DECAY = 5e-4
KERNEL_AXES = 4
BRANCHED = [*sorted(BLOCKS.keys() - {"plain"}), "csla(scales=learned)"]
Build = Callable[[nn.Module], Optimizer]


def wrong_decays(stock: nn.Module, block: str, build: Build) -> list[str]:
    """Names of the blocks' parameters that the host's optimizer decays wrongly, or does not train."""
    select = ["model.1", "model.2.m.0.cv2", "model.4.m.0.cv2"]
    model = expand(stock, block, select=select)
    optimizer = build(model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv_C3)]
    assert blocks
    parameters = [(f"{name}.{key}", p) for name, module in blocks for key, p in module.named_parameters()]
    return [key for key, p in parameters if decays.get(id(p)) != (DECAY if p.dim() == KERNEL_AXES else 0)]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "MuSGD"])
@pytest.mark.parametrize("block", BRANCHED)
def test_ultralytics_decays_kernels_alone(stock: nn.Module, block: str, name: str) -> None:
    trainer = pytest.importorskip("ultralytics.engine.trainer")
    if name == "MuSGD" and not hasattr(trainer, "MuSGD"):
        pytest.skip("optional host: MuSGD came with ultralytics 8.4")

    def build(model: nn.Module) -> Optimizer:
        return trainer.BaseTrainer.build_optimizer(SimpleNamespace(), model, name, lr=0.01, momentum=0.9, decay=DECAY)

    assert wrong_decays(stock, block, build) == []


YOLOV5 = """
import sys
from pathlib import Path
from yolorep.hosts.yolov5.compat import make_runnable
make_runnable()
import yolov5
from yolov5.models.yolo import Model
from yolov5.utils.torch_utils import smart_optimizer
from tests.hosts.test_gain_decay import BRANCHED, DECAY, wrong_decays
stock = Model(str(Path(yolov5.__path__[0]) / "models" / "yolov5n.yaml"))
for block in BRANCHED:
    for name in ("SGD", "Adam", "AdamW"):
        print("wrong", block, wrong_decays(stock, block, lambda model: smart_optimizer(model, name, 0.01, 0.9, DECAY)))
"""


@needs_package
def test_yolov5_decays_kernels_alone(tmp_path: object) -> None:
    printed = [line for line in run_python(YOLOV5, cwd=tmp_path).splitlines() if line.startswith("wrong")]  # type: ignore[arg-type]
    assert len(printed) == 3 * len(BRANCHED)
    assert [line for line in printed if not line.endswith("[]")] == []
