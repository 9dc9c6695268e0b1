"""What expand and deploy refuse, and that the model is then as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.helpers import assert_untouched, snapshot
from yolorep import BlockError, FoldError, HostError, deploy, expand, verify
from yolorep.stock_layers import rep_blocks

STOCK = "yolov5n.yaml"


@pytest.mark.parametrize("inplace", [True, False])
def test_a_failed_deploy_leaves_the_whole_model(rep: nn.Module, inplace: bool) -> None:
    rep.model[8].m[0].cv2.branch_identity.train()
    before = snapshot(rep)
    with pytest.raises(FoldError, match=r"^model\.8\.m\.0\.cv2\.branch_identity: .*training mode"):
        deploy(rep, inplace=inplace)
    assert_untouched(before, rep)


def test_deploy_tells_overflow_with_its_path(rep: nn.Module) -> None:
    rep.half()
    nn.init.constant_(rep.model[3].branch_1x1.bn.weight, 6e4)
    nn.init.constant_(rep.model[3].branch_1x1.conv.weight, 6e4)
    with pytest.raises(FoldError, match=r"^model\.3: .*not finite in torch\.float16"):
        deploy(rep)


def test_a_failed_expand_leaves_the_whole_model(stock: nn.Module) -> None:
    """The stem's kernel is even: no 1x1 branch fits beside it."""
    before = snapshot(stock)
    with pytest.raises(BlockError, match=r"^model\.0: a 1x1 branch does not fit .* accepted: odd kernels"):
        expand(stock, select=[1, 0], inplace=True)
    assert_untouched(before, stock)


def sequential(stock: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


NOT_EXPANDED: dict[str, tuple[Callable[[nn.Module], nn.Module], dict[str, Any], str]] = {
    "foreign": (sequential, {}, "Sequential has no convolution layer of ultralytics or YOLOv5; accepted"),
    "fused": (lambda stock: stock.fuse(verbose=False), {}, r"is fused .*expand it before fuse\(\)"),
    "expanded": (expand, {}, r"is already expanded, by {'block': 'repvgg'.*deploy\(\) it first"),
    "expanded-in-part": (lambda stock: expand(stock, select=1), {"select": 3}, "is already expanded"),
}


@pytest.mark.parametrize("case", NOT_EXPANDED)
def test_expand_refuses_in_one_sentence(stock: nn.Module, case: str) -> None:
    prepare, options, message = NOT_EXPANDED[case]
    with pytest.raises(HostError, match=message) as caught:
        expand(prepare(stock), **options)
    assert "\n" not in str(caught.value)


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"block": "x"}, "unknown; accepted"),
    ({"identity": "x"}, "unknown; accepted"),
    ({"block": "plain"}, "block 'plain' with identity 'auto' adds no branch to any of 69 layers"),
    ({"select": ["model.99.*"]}, r"select: 'model\.99\.\*' matches none of the 69 stock convolutions"),
    ({"select": ["model.4.*", "modle.6.*"]}, r"select: 'modle\.6\.\*' matches none"),  # one of several
    ({"select": 99}, "select: 99 matches none"),
    ({"select": []}, "an empty list matches none"),
    ({"select": [1.5]}, "1.5 is neither a layer index nor a name pattern"),
    ({"select": [True]}, "True is neither a layer index nor a name pattern"),
    ({"select": lambda name, layer: False}, "accepts none of the 69"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS, ids=[message for _, message in WRONG_OPTIONS])
def test_expand_refuses_wrong_options(stock: nn.Module, options: dict[str, Any], message: str) -> None:
    before = snapshot(stock)
    with pytest.raises(BlockError, match=message):
        expand(stock, inplace=True, **options)
    assert_untouched(before, stock)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"select": ["model.99.*"]}, r"select: 'model\.99\.\*' matches none of the \d+ stock convolutions"),
        ({"block": "plain"}, "block 'plain' with identity 'auto' adds no branch"),
    ],
)
def test_a_policy_that_grows_nothing_is_refused(policy: dict[str, Any], message: str) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    with pytest.raises(BlockError, match=message):
        tasks.DetectionModel({**tasks.yaml_model_load(STOCK), "rep": policy}, verbose=False)


def test_deploy_needs_no_registered_block(rep: nn.Module) -> None:
    """Nor leaves layers folded under a YAML that is not: a checkpoint with somebody's own block deploys anywhere."""
    rep.yaml["backbone"][1][3].append({"block": "mine"})
    deployed = deploy(rep)
    assert not rep_blocks(deployed)
    assert deployed.yaml["backbone"][1][2:] == ["Conv", [128, 3, 2]]


@pytest.mark.parametrize("call", [expand, deploy, lambda model: verify(model, model)])
def test_an_exported_model_is_refused(call: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    from ultralytics import YOLO

    (tmp_path / "model.onnx").touch()
    with pytest.raises(HostError, match=r"model.onnx is an exported model, without layers; accepted: a checkpoint"):
        call(YOLO(tmp_path / "model.onnx", task="detect"))
