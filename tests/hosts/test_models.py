"""Models of ultralytics with something special about them: shared layers, blocks of their own, compiled, fused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.helpers import assert_same_outputs, randomize_
from yolorep import HostError, deploy, expand, verify
from yolorep.foreign import foreign_blocks
from yolorep.stock_layers import rep_blocks

tasks = pytest.importorskip("ultralytics.nn.tasks")
Detector = Callable[[str], nn.Module]

OWN_BLOCKS = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv2", [16, 16, 3, 1]],
        [-1, 1, "RepConv", [16, 16, 3, 1]],
        [-1, 1, "ConvTranspose", [16]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[4], 1, "Detect", ["nc"]]],
}


def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, dtype=torch.float64)


def small() -> nn.Module:
    return randomize_(tasks.DetectionModel(OWN_BLOCKS, verbose=False)).eval().double()


@pytest.fixture
def model(detector: Detector) -> nn.Module:
    return detector("yolov8n.yaml").double()


@torch.no_grad()
def test_layers_that_ultralytics_folds_itself_stay() -> None:
    rep, x = randomize_(expand(small())), image()
    assert {"model.0", "model.4"} <= set(rep_blocks(rep))
    kinds = [type(layer).__name__ for layer in deploy(rep).model]
    assert kinds == ["Conv", "Conv2", "RepConv", "ConvTranspose", "Conv", "Detect"]
    expected = rep(x)
    assert_same_outputs(expected, deploy(rep)(x))
    fused = rep.fuse(verbose=False)
    assert_same_outputs(expected, fused(x))
    assert foreign_blocks(fused) == []
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@torch.no_grad()
def test_shared_layer_stays_shared(model: nn.Module) -> None:
    head = model.model[22]
    head.cv3[1][1] = head.cv3[2][1]
    rep, x = randomize_(expand(model)), image()
    deployed = deploy(rep)
    for one in (rep, deployed):
        assert one.model[22].cv3[1][1] is one.model[22].cv3[2][1]
    assert_same_outputs(rep(x), deployed(x))


@torch.no_grad()
def test_compiled_model_is_expanded_and_deployed_like_the_one_inside() -> None:
    model, x = small(), image()
    compiled = torch.compile(model, backend="eager")
    expected = compiled(x)
    expand(compiled, select="model.0", inplace=True)
    assert rep_blocks(model) == ["model.0"]
    assert model.yaml["rep"]["select"] == ["model.0"]
    assert_same_outputs(expected, compiled(x))
    randomize_(model)
    trained, deployed = compiled(x), deploy(compiled)
    assert "rep" not in deployed.yaml
    assert verify(compiled, deployed).ok
    assert_same_outputs(trained, deployed(x))


@pytest.mark.parametrize("make", [lambda model: model, expand], ids=["stock", "rep"])
def test_fused_model_is_not_expanded(model: nn.Module, make: Callable) -> None:
    with pytest.raises(HostError, match=r"is fused .* expand it before fuse"):
        expand(make(model).fuse(verbose=False))


def test_deployed_model_deploys_and_expands_again(model: nn.Module) -> None:
    deployed, x = deploy(expand(model)), image()
    assert deploy(deployed).state_dict().keys() == deployed.state_dict().keys()
    assert_same_outputs(model(x), expand(deployed)(x))
