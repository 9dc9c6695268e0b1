"""Weights go from model to model as the function that they are, whatever blocks either has."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from tests.foreign.lookalikes import RepVGGBlock
from tests.helpers import assert_same_outputs, randomize_
from yolorep import HostError, deploy
from yolorep.hosts import weight_transfer
from yolorep.stock_layers import rep_blocks

tasks = pytest.importorskip("ultralytics.nn.tasks")

BACKBONE = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C2f", [8, True]], [-1, 1, "Conv", [16, 3, 2]]]
REPVGG = {"block": "repvgg"}
HEADS = {  # task's model, and the arguments of its head
    "Detect": (tasks.DetectionModel, ["nc"]),
    "Segment": (tasks.SegmentationModel, ["nc", 4, 8]),
    "Pose": (tasks.PoseModel, ["nc", [4, 3]]),
    "OBB": (tasks.OBBModel, ["nc", 1]),
    "Classify": (tasks.ClassificationModel, ["nc"]),
}


def build(policy: dict[str, Any] | None, head: str = "Detect", nc: int = 2, ch: int = 3) -> Any:
    """A model of a few layers, in evaluation mode, with random batch norms, those of the branches too."""
    model, arguments = HEADS[head]
    rows = {"backbone": BACKBONE, "head": [[2 if head == "Classify" else [1, 2], 1, head, arguments]]}
    options = {"data_kpt_shape": [4, 3]} if head == "Pose" else {}
    yaml = {
        "nc": nc,
        **({"kpt_shape": [4, 3]} if head == "Pose" else {}),
        **rows,
        **({"rep": policy} if policy else {}),
    }
    made = randomize_(model(copy.deepcopy(yaml), ch=ch, nc=nc, verbose=False, **options)).eval()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-3  # what no state dict holds, and every model of a host has alike
    return made


@pytest.mark.parametrize(
    "policy",
    [
        None,
        REPVGG,
        {"block": "mobileone"},
        {"block": "orepa"},
        {**REPVGG, "identity": "none"},
        {**REPVGG, "identity": "average"},
        {**REPVGG, "select": [0]},
    ],
    ids=str,
)
def test_loading_a_rep_model_gives_its_function(policy: dict[str, Any] | None) -> None:
    source, model = build(REPVGG), build(policy)
    blocks, x = rep_blocks(model), torch.rand(1, 3, 64, 64)
    expected, before = source(x), rep_blocks(source)
    model.load(source, verbose=False)
    assert_same_outputs(expected, model(x))
    assert rep_blocks(model) == blocks
    assert rep_blocks(source) == before


@pytest.mark.parametrize("policies", [(REPVGG, None), (REPVGG, REPVGG), (None, REPVGG)], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_other_numbers_of_classes_keep_the_policys_blocks(head: str, policies: tuple[Any, Any]) -> None:
    """ultralytics takes the layers of the source's class head as they are when the new one is of another width."""
    source, model = build(policies[0], head, nc=80), build(policies[1], head, nc=2)
    blocks = rep_blocks(model)
    model.load(source, verbose=False)
    narrow = set(blocks) - set(rep_blocks(model))  # 1x1 whose input could be added to the output at 2 classes
    assert all(model.get_submodule(name).conv.kernel_size == (1, 1) for name in narrow)
    assert set(rep_blocks(model)) <= set(blocks)
    x = torch.rand(1, 3, 32, 32)
    assert_same_outputs(source.model[0](x), model.model[0](x))


def test_a_class_head_of_another_kind_takes_the_place_of_the_blocks() -> None:
    """That of 11 has depthwise and 1x1 layers where that of v8 has one layer; C3k2 tells ultralytics which to build."""
    source, reference = build(None, nc=80), build(None, nc=2)
    backbone = [BACKBONE[0], [-1, 1, "C3k2", [8, False]], BACKBONE[2]]
    yaml = {**reference.yaml, "backbone": backbone, "rep": {**REPVGG, "select": ["*.cv3.*.1"]}}
    model = tasks.DetectionModel(copy.deepcopy(yaml), verbose=False)
    assert [name.split(".")[2] for name in rep_blocks(model)] == ["cv3"] * 4
    model.load(source, verbose=False)
    assert [type(layer) for layer in model.model[-1].cv3[0]] == [type(layer) for layer in reference.model[-1].cv3[0]]


@pytest.mark.parametrize("policies", [(None, REPVGG), (REPVGG, REPVGG), (REPVGG, None)], ids=str)
@pytest.mark.parametrize("ch", [1, 4])
def test_images_of_other_channels_get_the_sources_first_layer(ch: int, policies: tuple[Any, Any]) -> None:
    """ultralytics makes its kernel of the source's, which is all that there is to a stock layer."""
    torch.manual_seed(0)
    source, model, reference = build(policies[0]), build(policies[1], ch=ch), build(None, ch=ch)
    with torch.no_grad():
        for new in (model, reference):  # a fourth channel stays as it is
            new.model[0].conv.weight.zero_()
    blocks = rep_blocks(model)
    model.load(source, verbose=False)
    reference.load(deploy(source), verbose=False)
    x = torch.rand(1, ch, 32, 32)
    assert_same_outputs(reference.model[0](x), model.model[0](x))
    assert rep_blocks(model) == blocks


def test_a_checkpoint_dictionary_loads_as_its_model() -> None:
    source, model, x = build(REPVGG), build(None), torch.rand(1, 3, 64, 64)
    model.load({"model": source}, verbose=False)
    other = build(None)
    other.load(source, verbose=False)
    assert_same_outputs(other(x), model(x))


def test_a_checkpoint_of_half_precision_is_folded_in_float32() -> None:
    stored, model, x = build(REPVGG).half(), build(None), torch.rand(1, 3, 64, 64)
    expected = copy.deepcopy(stored).float()(x)
    model.load({"model": stored}, verbose=False)
    assert_same_outputs(expected, model(x))


def test_branches_without_a_place_are_refused() -> None:
    """As in YOLOv5's training, of which yolorep sees the state dicts only."""
    rep, stock, silent = (build(policy).state_dict() for policy in (REPVGG, None, {**REPVGG, "identity": "none"}))
    for source, target in ((stock, rep), (rep, rep), (silent, rep), ({"model.9.branch_1x1.weight": 0}, stock)):
        weight_transfer.check_room(source, target)
    for target, count in ((stock, len(rep_blocks(build(REPVGG)))), (silent, None)):
        with pytest.raises(HostError, match=r"rep blocks of the weights \(model\.0 for one\) have branches") as error:
            weight_transfer.check_room(rep, target)
        said = int(re.match(r"\d+", str(error.value)).group())  # type: ignore[union-attr]
        assert count in (None, said)


def test_folded_blocks_of_another_project_are_not_dropped_on_transfer() -> None:
    """A model built from the YAML has the branches again, and the folded weights have no place there."""
    made = build(None)
    made.model[0] = RepVGGBlock(3, 8)
    fresh, folded = copy.deepcopy(made), deploy(made.eval())
    for check in (
        lambda: fresh.load(folded),
        lambda: weight_transfer.check_room(folded.state_dict(), fresh.state_dict()),
    ):
        with pytest.raises(HostError, match=r"1 blocks of the weights \(model\.0 .*before yolorep deploy"):
            check()
    folded.load(folded)
    fresh.load(fresh)
