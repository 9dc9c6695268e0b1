"""The real thing: blocks and models of ultralytics and timm."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.helpers import assert_same, randomize_
from yolorep import BlockError, deploy, expand
from yolorep.expansion import grow_
from yolorep.foreign import foreign_blocks
from yolorep.host import own_blocks
from yolorep.policy import Policy
from yolorep.stock_layers import rep_blocks

FAMILIES = {"repvgg_a0": 22, "mobileone_s0": 43, "fastvit_t8": 20, "repvit_m1": 23}
C = 8


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is left as it is")
        yield


@pytest.mark.parametrize("options", [{}, {"bn": True}, {"bn": True, "g": 2}, {"bn": True, "g": C}, {"s": 2}, {"d": 2}])
def test_ultralytics_repconv_becomes_its_conv(options: dict[str, int]) -> None:
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    block, x = randomize_(conv.RepConv(C, C, **options)).eval(), torch.randn(2, C, 9, 9)
    deployed = deploy(block)
    assert type(deployed) is conv.Conv
    assert_same(block(x), deployed(x))


@pytest.mark.parametrize("name", ["RepVGGDW", "RepC3"])
def test_ultralytics_block_folds(name: str) -> None:
    module = getattr(pytest.importorskip("ultralytics.nn.modules.block"), name)
    block = randomize_(module(C) if name == "RepVGGDW" else module(C, C)).eval()
    x, deployed = torch.randn(2, C, 9, 9), deploy(block)
    assert foreign_blocks(deployed) == []
    assert_same(block(x), deployed(x))


@pytest.mark.parametrize("yaml", ["yolov9t.yaml", "yolov10s.yaml"])
def test_ultralytics_model_keeps_its_own_blocks_until_it_is_fused(yaml: str, detector) -> None:
    model, x = detector(yaml), torch.rand(1, 3, 64, 64)
    own = [(name, type(block)) for name, block in foreign_blocks(model)]
    assert own
    assert foreign_blocks(model, leave=own_blocks(model)) == []
    deployed = deploy(model)
    assert [(name, type(block)) for name, block in foreign_blocks(deployed)] == own
    expected, fused = model(x)[0], deployed.fuse(verbose=False)
    assert foreign_blocks(fused) == []
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert_same(expected, fused(x)[0])


def test_blocks_inside_those_of_ultralytics_leave_nothing_behind(detector) -> None:
    """`expand` takes no branch of a RepConv; one that was grown all the same is folded with the rest of it."""
    model, x = detector("yolov9t.yaml"), torch.rand(1, 3, 64, 64)
    blocks = [name for name, _ in foreign_blocks(model)]
    assert not any(name.startswith(tuple(blocks)) for name in rep_blocks(expand(model)))
    name = f"{blocks[0]}.conv1"
    with pytest.raises(BlockError, match=f"{name}' matches none"):
        expand(model, select=name)
    rep = copy.deepcopy(model)
    grow_([(name, rep.get_submodule(name))], Policy(), trained=True)
    randomize_(rep)
    expected, fused = rep(x)[0], copy.deepcopy(rep).fuse(verbose=False)
    assert not any(type(m).__module__.startswith("yolorep") for m in [*fused.modules(), *deploy(rep).modules()])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert_same(expected, fused(x)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_model_deploys(name: str) -> None:
    timm = pytest.importorskip("timm")
    model, x = randomize_(timm.create_model(name, num_classes=3)).eval(), torch.randn(1, 3, 64, 64)
    assert len(foreign_blocks(model)) == FAMILIES[name]
    deployed = deploy(model)
    assert foreign_blocks(deployed) == []
    assert_same(model(x), deployed(x))
