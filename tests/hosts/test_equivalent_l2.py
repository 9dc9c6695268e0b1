"""The weight decay of the equivalent kernels, in the optimizers that the hosts build."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import needs_package
from yolorep import BlockError, deploy
from yolorep.blocks import equivalent_l2
from yolorep.hosts.shipped import find_yaml
from yolorep.training.penalty import kernels, penalized_blocks

DECAY = 0.5  # large, so that a wrong step shows
Build = Callable[[nn.Module], Optimizer]


def assert_step_has_the_penalty(model: nn.Module, build: Build) -> int:
    """A step of the host's optimizer is the one with the penalty in the loss; how many groups it has more than before.

    model: with rep rows, and a YAML that does not ask for it yet.
    """
    other = copy.deepcopy(model)
    before = len(build(model).param_groups)
    model.yaml["equivalent_l2"] = True
    optimizer, reference = build(model), build(other)
    spared = [kernel for block in penalized_blocks(other) for kernel in kernels(block)]
    _spare_(reference, spared)
    for net in (model, other):
        torch.manual_seed(0)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
    penalty = DECAY / 2 * equivalent_l2(other)
    for kernel, gradient in zip(spared, torch.autograd.grad(penalty, spared), strict=True):
        kernel.grad += gradient
    optimizer.step()
    reference.step()
    for (key, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=key)
    return len(optimizer.param_groups) - before


def _spare_(optimizer: Optimizer, spared: list[nn.Parameter]) -> None:
    """Move parameters to groups of their own that are as theirs but for weight decay."""
    free = {id(kernel) for kernel in spared}
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in free]
        group["params"] = [p for p in group["params"] if id(p) not in free]
        if mine:
            optimizer.add_param_group({**group, "params": mine, "weight_decay": 0.0})


@pytest.mark.parametrize(("name", "more_groups"), [("SGD", 0), ("AdamW", 0), ("MuSGD", 1)])
def test_ultralytics_steps_have_the_penalty(rep: nn.Module, name: str, more_groups: int) -> None:
    """In its own groups, unless none without decay has the options of the kernels' (MuSGD)."""
    trainer = pytest.importorskip("ultralytics.engine.trainer")
    if name == "MuSGD" and not hasattr(trainer, "MuSGD"):
        pytest.skip("optional host: MuSGD came with ultralytics 8.4")

    def build(model: nn.Module) -> Optimizer:
        return trainer.BaseTrainer.build_optimizer(SimpleNamespace(), model, name, lr=0.01, momentum=0.9, decay=DECAY)

    assert assert_step_has_the_penalty(rep, build) == more_groups


def test_ultralytics_refuses_a_model_without_equivalent_kernels(stock: nn.Module) -> None:
    trainer = pytest.importorskip("ultralytics.engine.trainer")
    stock.yaml["equivalent_l2"] = True
    with pytest.raises(BlockError, match="equivalent_l2 is defined for block repvgg"):
        trainer.BaseTrainer.build_optimizer(SimpleNamespace(), nn.Sequential(stock), "SGD")


class StartedError(Exception):
    """A training that has built its optimizer, which is all that is looked at."""


@pytest.mark.parametrize("by_option", [True, False])
def test_ultralytics_takes_it_from_an_option_or_the_yaml(by_option: bool, tiny_dataset: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    seen: dict[str, Any] = {}

    def stop(trainer: Any) -> None:
        seen.update(model=trainer.model, hooks=len(trainer.optimizer._optimizer_step_pre_hooks))
        raise StartedError

    file, options = "yolov5n-rep.yaml", {"equivalent_l2": True}
    if not by_option:
        shipped = Path(find_yaml(file)).read_text()
        (tmp_path / file).write_text(f"equivalent_l2: true\n{shipped}")
        file, options = str(tmp_path / file), {}
    model = YOLO(file)
    model.add_callback("on_train_start", stop)
    with pytest.raises(StartedError):
        model.train(data=str(tiny_dataset), imgsz=32, device="cpu", plots=False, project=str(tmp_path), **options)
    assert (seen["model"].yaml["equivalent_l2"], seen["hooks"]) == (True, 1)
    assert "equivalent_l2" not in deploy(seen["model"].eval()).yaml


YOLOV5 = f"""
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.hosts.shipped import find_yaml
make_runnable()
from yolov5.models.yolo import Model
from yolov5.utils.torch_utils import smart_optimizer
from tests.hosts.test_equivalent_l2 import assert_step_has_the_penalty
for name in ("SGD", "AdamW"):
    build = lambda model: smart_optimizer(model, name, 0.01, 0.9, {DECAY})
    print(assert_step_has_the_penalty(Model(find_yaml("yolov5n-rep.yaml")), build))
"""


@needs_package
def test_yolov5_steps_have_the_penalty(tmp_path: Path) -> None:
    """In its own three groups, which its schedules and logs count."""
    assert run_python(YOLOV5, cwd=tmp_path).split()[-2:] == ["0", "0"]


MAIN = """
import sys, types
utils, general = map(types.ModuleType, ("utils.torch_utils", "utils.general"))
utils.smart_optimizer = smart_optimizer = lambda model, *args: "made"
general.intersect_dicts = lambda source, target: target
yolo = types.ModuleType("models.yolo")
sys.modules.update({module.__name__: module for module in (utils, general)})
from yolorep.hosts.hooks import MARK, Hooks
from yolorep.hosts.yolov5.training_hooks import wrap_functions
hooks = Hooks()
wrap_functions(hooks, yolo)
print(hasattr(utils.smart_optimizer, MARK), hasattr(smart_optimizer, MARK))
hooks.remove()
print(hasattr(utils.smart_optimizer, MARK), hasattr(smart_optimizer, MARK))
"""


def test_a_script_that_has_its_optimizer_already_is_hooked_too() -> None:
    """As where a plain train.py imports yolorep no sooner than by reading a rep checkpoint."""
    assert run_python(MAIN).split() == ["True", "True", "False", "False"]
