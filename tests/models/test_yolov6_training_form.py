"""`yolov6n-rep.yaml` and `yolov6s-rep.yaml` train YOLOv6's published blocks and deploy to the same layers.

`RepVGGBlock` restates the block of YOLOv6 (`yolov6/layers/common.py`). The whole backbone and neck were compared once
with that project's code (commit e86a483) and the same weights: equal outputs, and 2e-15 once both are deployed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.foreign.lookalikes import RepVGGBlock
from tests.helpers import assert_same, randomize_
from yolorep import deploy, expand
from yolorep.blocks import Conv_C3
from yolorep.stock_layers import rep_blocks

tasks = pytest.importorskip("ultralytics.nn.tasks")

# layer of ultralytics' yolov6.yaml → blocks: the stem and ERBlock_2 to 5, then Rep_p4, Rep_p3, Rep_n3 and Rep_n4
BLOCKS = {0: 1, 1: 1, 2: 2, 3: 1, 4: 4, 5: 1, 6: 6, 7: 1, 8: 2}
BLOCKS |= {13: 1, 14: 3, 18: 1, 19: 3, 22: 1, 23: 3, 26: 1, 27: 3}
NAMES = ("yolov6n-rep.yaml", "yolov6s-rep.yaml")


def model(name: str) -> Any:
    return randomize_(tasks.DetectionModel(name, verbose=False)).double().eval()


def published(block: Conv_C3) -> RepVGGBlock:
    """YOLOv6's block with the weights of ours."""
    made = RepVGGBlock(block.conv.in_channels, block.conv.out_channels, block.conv.stride[0]).double().eval()
    branches = dict(block.branches())
    pairs = [(made.rbr_dense.conv, block.conv), (made.rbr_dense.bn, block.bn), (made.rbr_1x1, branches["branch_1x1"])]
    if made.rbr_identity is not None:
        pairs.append((made.rbr_identity, branches["branch_identity"]))
    assert len(branches) == len(pairs) - 2
    for published, block in pairs:
        published.load_state_dict(block.state_dict())
        for norm, like in zip(published.modules(), block.modules(), strict=True):
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps, norm.momentum = like.eps, like.momentum
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_published_layers_have_blocks(name: str) -> None:
    made = model(name)
    counts = [sum(isinstance(m, Conv_C3) for m in layer.modules()) for layer in made.model]
    assert {index: count for index, count in enumerate(counts) if count} == BLOCKS


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_block_computes_what_the_published_one_does(name: str) -> None:
    """In both modes, and with the folds of both projects."""
    for block in (m for m in model(name).modules() if isinstance(m, Conv_C3)):
        reference, x = published(block), torch.randn(2, block.conv.in_channels, 7, 6, dtype=torch.float64)
        assert_same(reference(x), block(x))
        assert_same(reference.train()(x), block.train()(x))
        block.eval()._switch_to_deploy()
        reference.eval().switch_to_deploy()
        assert_same(reference.rbr_reparam.weight, block.conv.weight)
        assert_same(reference.rbr_reparam.bias, block.conv.bias)
        assert_same(reference(x), block(x))


@pytest.mark.parametrize("name", NAMES)
def test_it_deploys_to_the_layers_of_ultralytics(name: str) -> None:
    stock = tasks.DetectionModel(name.replace("-rep", ""), verbose=False)
    deployed = deploy(model(name))
    shapes = [[(key, value.shape) for key, value in m.state_dict().items()] for m in (stock, deployed)]
    assert shapes[0] == shapes[1]
    assert [type(m) for m in stock.modules()] == [type(m) for m in deployed.modules()]


def test_the_request_gives_the_same_blocks_to_the_stock_model() -> None:
    rep = tasks.yaml_model_load("yolov6n-rep.yaml")["rep"]
    expanded = expand(tasks.DetectionModel("yolov6n.yaml", verbose=False), **rep)
    made = model("yolov6n-rep.yaml")
    assert rep_blocks(expanded) == rep_blocks(made)
    assert expanded.state_dict().keys() == made.state_dict().keys()
