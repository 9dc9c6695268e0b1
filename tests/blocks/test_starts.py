"""Starts: silent branches keep the function, even ones share the variance, paper ones are as declared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.helpers import assert_same
from yolorep import BlockError, Conv_C3, expand
from yolorep.hosts.train_options import from_flags, from_pairs, read
from yolorep.policy import Policy


def blocks(model: nn.Module) -> list[Conv_C3]:
    return [module for module in model.modules() if isinstance(module, Conv_C3)]


def gains(block: Conv_C3) -> list[float]:
    norms = [
        block.bn,
        *(m for _, branch in block.branches() for m in branch.modules() if isinstance(m, nn.BatchNorm2d)),
    ]
    return [float(norm.weight.mean()) for norm in norms]


def test_silent_branches_keep_the_function(stock: nn.Module) -> None:
    x = torch.rand(1, 3, 64, 64)
    rep = expand(stock, start="silent")
    assert_same(stock(x)[0], rep(x)[0])
    assert rep.yaml["rep"]["start"] == "silent"


def test_even_branches_share_the_variance_of_one_path() -> None:
    from ultralytics.nn.tasks import DetectionModel

    rep = expand(DetectionModel("yolov5n.yaml", verbose=False), start="even")
    for block in blocks(rep):
        found = gains(block)
        assert found == pytest.approx([len(found) ** -0.5] * len(found))
        assert sum(gain**2 for gain in found) == pytest.approx(1)


@pytest.mark.parametrize(("start", "gain"), [("paper", 1.0), ("silent", 0.0), ("even", 3**-0.5)])
def test_a_yaml_and_every_command_line_take_a_start(
    start: str, gain: float, detector: Callable[[str], nn.Module]
) -> None:
    from ultralytics.nn.tasks import DetectionModel

    asked = read(from_pairs(["rep=repvgg", f"start={start}"])[1]).policy
    assert asked == read(from_flags(["--rep", "repvgg", "--start", start])[1]).policy == Policy(start=start)
    stock = DetectionModel("yolov5n.yaml", verbose=False)
    model = DetectionModel({**stock.yaml, "rep": asked.to_yaml()}, verbose=False)
    first = blocks(model)[0]
    assert float(first.branch_1x1.bn.weight.mean()) == pytest.approx(gain)


def test_an_unknown_start_is_one_sentence(stock: nn.Module) -> None:
    with pytest.raises(BlockError, match="start 'loud' is unknown; accepted: silent, even, paper"):
        expand(stock, start="loud")
    with pytest.raises(BlockError, match="rep: start 3 is unknown"):
        Policy.from_yaml({"start": 3})
