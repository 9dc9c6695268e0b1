"""Rep rows and policies: the stock dictionary that stands in for them, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from yolorep import BlockError
from yolorep.host import ULTRALYTICS, YOLOV5, Host
from yolorep.model_yaml import deployed, plan, stock_name
from yolorep.policy import Policy

DIALECTS = {"ultralytics": ULTRALYTICS, "yolov5": YOLOV5}
DETECT = [[-1], 1, "Detect", ["nc", "anchors"]]


def model(*rows: list[Any], **top: Any) -> dict[str, Any]:
    """A model dictionary of the given rows, each [module, args], and a head."""
    backbone = [[-1, 1, name, args] for name, args in rows]
    return {"nc": 2, "anchors": [[1, 2]], "backbone": backbone, "head": [deepcopy(DETECT)], **top}


# rep row, stand-in for ultralytics, stand-in for YOLOv5 (None: the same)
STAND_INS = {
    "conv": (["Conv_C3", [64, 3, 2]], ["Conv", [64, 3, 2]], None),
    "conv-default-is-3x3": (["Conv_C3", [64]], ["Conv", [64, 3]], None),
    "conv-options": (["Conv_C3", [64, 5, 2, {"identity": "conv"}]], ["Conv", [64, 5, 2]], None),
    "conv-default-options": (["Conv_C3", [64, {"se": True}]], ["Conv", [64, 3]], None),
    "c3": (["C3Rep", [64]], ["C3", [64]], None),
    "c3-options": (["C3Rep", [64, False, {"k": [3, 3]}]], ["C3", [64, False]], None),
    "bottleneck": (["BottleneckRep", [64]], ["Bottleneck", [64, True, 1, [1, 3], 0.5]], ["Bottleneck", [64]]),
    "bottleneck-options": (
        ["BottleneckRep", [64, False, 2, 1.0, {"k": [3, 3]}]],
        ["Bottleneck", [64, False, 2, [3, 3], 1.0]],
        ["Bottleneck", [64, False, 2, 1.0]],
    ),
    "stock": (["SPPF", [64, 5]], ["SPPF", [64, 5]], None),
}


@pytest.mark.parametrize("host", DIALECTS)
@pytest.mark.parametrize("case", STAND_INS)
def test_plan_stands_stock_rows_in(case: str, host: str) -> None:
    row, ultralytics, yolov5 = STAND_INS[case]
    expected = ultralytics if host == "ultralytics" or yolov5 is None else yolov5
    assert plan(model(row), DIALECTS[host]).stock["backbone"][0][2:] == expected


@pytest.mark.parametrize(("host", "expected"), [(ULTRALYTICS, ["nc"]), (YOLOV5, ["nc", "anchors"])])
def test_plan_writes_the_head_as_the_host_does(host: Host, expected: list[str]) -> None:
    assert plan(model(["C3Rep", [64]]), host).stock["head"][0][3] == expected


def test_plan_leaves_what_it_is_given() -> None:
    given = model(["C3Rep", [64, {"k": [3, 3]}]], rep={"block": "repvgg"})
    before = deepcopy(given)
    plan(given, ULTRALYTICS)
    deployed(given, ULTRALYTICS)
    assert given == before


def test_plan_of_a_stock_model_asks_for_nothing() -> None:
    given = model(["Conv", [64]], ["C3", [64]])
    split = plan(given, ULTRALYTICS)
    assert not split.is_rep
    assert split.stock == given


def test_plan_says_what_to_grow_where() -> None:
    rows = (["Conv", [8]], ["Conv_C3", [8, {"block": "plain"}]], ["C3Rep", [8, {"k": [3, 3], "se": True}]])
    split = plan(model(*rows, rep={"identity": "conv", "select": "model.0"}), ULTRALYTICS)
    assert split.rows == {1: ("Conv_C3", Policy(block="plain")), 2: ("C3Rep", Policy(k=(3, 3), se=True))}
    assert split.policy == Policy(identity="conv", select=("model.0",))
    assert "rep" not in split.stock


@pytest.mark.parametrize("rep", [{}, {"select": [1, "model.2.*"]}, {"select": None}, "repvgg"], ids=str)
def test_plan_accepts_a_short_policy(rep: dict[str, Any] | str) -> None:
    assert plan(model(["Conv", [8]], rep=rep), ULTRALYTICS).is_rep


@pytest.mark.parametrize("asked", [True, False])
def test_the_decay_of_equivalent_kernels_is_of_the_rep_model_alone(asked: bool) -> None:
    given = model(["Conv_C3", [8]], equivalent_l2=asked)
    assert "equivalent_l2" not in plan(given, ULTRALYTICS).stock
    assert "equivalent_l2" not in deployed(given, ULTRALYTICS)


REFUSED = {
    "unknown-block": (model(["Conv_C3", [8, {"block": "x"}]]), r"^row 0 \(Conv_C3\): block 'x' .* accepted: "),
    "block-is-a-list": (model(["Conv_C3", [8, {"block": ["repvgg"]}]]), r"^row 0 \(Conv_C3\): block"),
    "unknown-identity": (
        model(["SPPF", [8]], ["C3Rep", [8, {"identity": 1}]]),
        r"^row 1 \(C3Rep\): identity must be a name, got 1",
    ),
    "unknown-option": (
        model(["C3Rep", [8, {"kernel": 3}]]),
        r"unknown option 'kernel'; accepted: block, identity, se, k",
    ),
    "conv-has-no-k": (model(["Conv_C3", [8, {"k": [3, 3]}]]), r"unknown option 'k'; accepted: block, identity, se$"),
    "k-even": (model(["C3Rep", [8, {"k": [2, 3]}]]), r"k must be two odd kernel sizes.*\[2, 3\]"),
    "k-one": (model(["C3Rep", [8, {"k": 3}]]), "k must be two odd kernel sizes.*got 3"),
    "k-words": (model(["C3Rep", [8, {"k": ["a", "b"]}]]), "k must be two odd"),
    "k-empty": (model(["C3Rep", [8, {"k": None}]]), "k must be two odd kernel sizes.*got None"),
    "policy-list": (model(rep=["repvgg"]), r"^rep: options must be a mapping, got \['repvgg'\]"),
    "policy-text": (model(rep="x"), "^rep: block 'x' is unknown"),
    "policy-option": (model(rep={"se": True}), "^rep: unknown option 'se'; accepted: block, identity, select"),
    "policy-keys": (model(rep={1: 2, "a": 3}), "^rep: unknown option 1, 'a'; accepted: block"),
    "policy-block": (model(rep={"block": "x"}), "^rep: block 'x' is unknown"),
    "se-word": (model(["Conv_C3", [8, {"se": "maybe"}]]), r"^row 0 \(Conv_C3\): se must be true or false, got 'maybe'"),
    "se-number": (model(["C3Rep", [8, {"se": 1}]]), r"^row 0 \(C3Rep\): se must be true or false, got 1"),
    "k-true": (model(["C3Rep", [8, {"k": [True, 3]}]]), "k must be two odd"),
    "k-negative": (model(["C3Rep", [8, {"k": [-3, 3]}]]), "k must be two odd"),
    "k-huge": (model(["C3Rep", [8, {"k": [99999, 3]}]]), "k must be two odd"),
    "no-arguments": (model(["Conv_C3", []]), r"^row 0 \(Conv_C3\): no arguments; accepted: channels, kernel"),
    "too-many": (model(["C3Rep", [8, True, 1, 0.5, 1]]), "5 arguments; accepted: at most 4, channels, shortcut"),
    "channels-text": (model(["Conv_C3", ["8"]]), "channels must be a number of output channels .*, got '8'"),
    "channels-zero": (model(["Conv_C3", [0]]), "channels must be .* from 1 to 65536, got 0"),
    "channels-true": (model(["C3Rep", [True]]), "channels must be .*, got True"),
    "channels-float": (model(["C3Rep", [8.0]]), "channels must be .*, got 8.0"),
    "stride": (model(["Conv_C3", [8, 3, 0]]), "stride must be an integer from 1 to 1000, got 0"),
    "padding": (model(["Conv_C3", [8, 3, 1, -1]]), "padding must be .*, got -1"),
    "activation": (model(["Conv_C3", [8, 3, 1, None, 1, 1, 3]]), "activation must be .*, got 3"),
    "kernel": (model(["Conv_C3", [8, 99]]), "kernel must be a kernel size from 1 to 31, or a list of two"),
    "shortcut": (model(["C3Rep", [8, "yes"]]), "shortcut must be true or false, got 'yes'"),
    "expansion": (model(["C3Rep", [8, True, 1, True]]), "expansion must be a number above 0"),
    "number": ({**model(), "backbone": [[-1, 0, "C3Rep", [8]]]}, r"row 0 \(C3Rep\): number must be an integer from 1"),
    "short": (
        {**model(), "backbone": [[-1, 1, "C3Rep"]]},
        r"^row 0: \[-1, 1, 'C3Rep'\] is not a row; accepted: \[from",
    ),
    "from": ({**model(), "backbone": [["x", 1, "C3Rep", [8]]]}, "inputs must be a layer's index"),
    "decay": (model(["Conv_C3", [8]], equivalent_l2="yes"), "^equivalent_l2: 'yes' is not accepted; accepted: true, f"),
}


@pytest.mark.parametrize("host", DIALECTS)
@pytest.mark.parametrize("case", REFUSED)
def test_plan_refuses_with_the_row_at_fault(case: str, host: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(BlockError, match=message):
        plan(given, DIALECTS[host])


# rep row and the row it is written as once deployed, for ultralytics and for YOLOv5 (None: the same)
DEPLOYED = {
    "conv": (["Conv_C3", [64, 3, 2]], ["Conv", [64, 3, 2]], None),
    "c3": (["C3Rep", [64, False, {"identity": "conv"}]], ["C3", [64, False]], None),
    "c3-k33": (
        ["C3Rep", [64, {"k": [3, 3]}]],
        ["C3Rep", [64, {"block": "plain", "identity": "none", "k": [3, 3]}]],
        None,
    ),
    "conv-se": (
        ["Conv_C3", [64, {"se": True}]],
        ["Conv_C3", [64, {"block": "plain", "identity": "none", "se": True}]],
        None,
    ),
    "bottleneck-k33": (
        ["BottleneckRep", [64, {"k": [3, 3]}]],
        ["Bottleneck", [64, True, 1, [3, 3], 0.5]],
        ["BottleneckRep", [64, {"block": "plain", "identity": "none", "k": [3, 3]}]],
    ),
}


@pytest.mark.parametrize("host", DIALECTS)
@pytest.mark.parametrize("case", DEPLOYED)
def test_deployed_describes_the_folded_layer(case: str, host: str) -> None:
    row, ultralytics, yolov5 = DEPLOYED[case]
    expected = ultralytics if host == "ultralytics" or yolov5 is None else yolov5
    written = deployed(model(row, rep={}), DIALECTS[host])
    assert written["backbone"][0][2:] == expected
    assert "rep" not in written
    assert deployed(written, DIALECTS[host]) == written


@pytest.mark.parametrize(
    ("rep", "stock"),
    [
        ("yolov5n-rep.yaml", "yolov5n.yaml"),
        ("runs/my-reports/yolov5s-rep.yaml", "runs/my-reports/yolov5s.yaml"),
        ("yolov5s.yaml", "yolov5s.yaml"),
    ],
)
def test_stock_name_is_the_models_name_without_rep(rep: str, stock: str) -> None:
    assert stock_name(rep) == stock
    assert deployed(model(yaml_file=rep, rep={}), ULTRALYTICS)["yaml_file"] == stock


def classifier(head: list[Any]) -> dict[str, Any]:
    return {"nc": 2, "backbone": [[-1, 1, "Conv_C3", [64, 3, 2]]], "head": [[-1, 1, "FC", head]]}


def test_a_classifiers_head_stands_for_classify_and_stays_when_deployed() -> None:
    split = plan(classifier(["nc"]), ULTRALYTICS)
    assert split.stock["head"] == [[-1, 1, "Classify", ["nc"]]]
    assert split.rows[1] == ("FC", Policy())
    result = deployed(classifier(["nc"]), ULTRALYTICS)
    assert result == {"nc": 2, "backbone": [[-1, 1, "Conv", [64, 3, 2]]], "head": [[-1, 1, "FC", ["nc"]]]}
    assert deployed(result, ULTRALYTICS) == result


def test_a_classifiers_head_takes_no_option_and_no_yolov5_tree() -> None:
    with pytest.raises(BlockError, match=r"row 1 \(FC\): unknown option 'block'"):
        plan(classifier(["nc", {"block": "repvgg"}]), ULTRALYTICS)
    with pytest.raises(BlockError, match=r"row 1 \(FC\): YOLOv5 trees build no classifier"):
        plan(classifier(["nc"]), YOLOV5)
