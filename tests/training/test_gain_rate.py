"""The gains of branches step at a separate learning rate; all other parameters step as before."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.hosts.yolov5_helpers import needs_package
from tests.processes import run as run_program
from yolorep import BlockError, Conv_C3
from yolorep.training.gain_rate import branch_gains, speed_gains_


def stepped(model: nn.Module, factor: float | None) -> dict[str, torch.Tensor]:
    """How far one step of SGD moves each parameter, for a gradient of ones."""
    model = copy.deepcopy(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if factor is not None:
        speed_gains_(optimizer, model, factor)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: before[name] - value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("block", "fast"),
    [
        ("repvgg", {"branch_1x1.bn.weight", "branch_identity.weight"}),
        ("dbb", {"branch_1x1.bn.weight", "branch_1x1_kxk.bn2.weight", "branch_average.bn2.weight"}),
        ("csla(scales=learned)", {"branch_1x1.scale.weight"}),
        ("twin", {"branch_frozen.bn.weight"}),
    ],
)
def test_the_last_gain_of_each_branch_is_faster(block: str, fast: set[str]) -> None:
    model = Conv_C3(8, 8, block=block)
    plain, sped = stepped(model, None), stepped(model, 10)
    for name, moved in plain.items():
        torch.testing.assert_close(sped[name], moved * (10 if name in fast else 1), msg=name, rtol=1e-3, atol=1e-6)


def test_new_groups_are_last_and_keep_what_a_schedule_reads() -> None:
    model = Conv_C3(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    assert speed_gains_(optimizer, model, 4) == 2
    first, second = optimizer.param_groups
    assert (second["lr"], second["initial_lr"], second["momentum"]) == pytest.approx((0.2, 0.4, 0.9))
    assert first["initial_lr"] == 0.1
    assert {id(p) for p in second["params"]} == {id(gain) for gain in branch_gains(model)}


@pytest.mark.parametrize("block", ["plain", "csla"])
def test_a_model_without_trained_gains_is_refused(block: str) -> None:
    with pytest.raises(BlockError, match="gain_lr: no branch has a gain that is trained"):
        branch_gains(Conv_C3(8, 8, block=block))


YOLOV5 = """
from yolorep.hosts.yolov5.compat import make_runnable
make_runnable()
from pathlib import Path
import yolov5
from yolov5.models.yolo import Model
from yolov5.utils.torch_utils import smart_optimizer
from yolorep import expand
model = expand(Model(str(Path(yolov5.__path__[0]) / "models" / "yolov5n.yaml")))
model.yaml["gain_lr"] = 10
groups = smart_optimizer(model, "SGD", 0.01, 0.9, 5e-4).param_groups
print([(group["lr"], group["weight_decay"]) for group in groups], len(groups[-1]["params"]))
"""


@needs_package
def test_yolov5s_optimizer_has_a_group_for_the_gains(tmp_path: Path) -> None:
    printed = run_program(YOLOV5, cwd=tmp_path)
    assert "yolorep: the gains of" in printed
    assert "(0.1, 0.0)] 53" in printed
