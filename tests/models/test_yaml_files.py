"""A model YAML that cannot be built is one sentence with the file and the row, whoever finds the fault."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolorep import BlockError, HostError
from yolorep.errors import YolorepError
from yolorep.hosts.ultralytics.build import build
from yolorep.row_schema import check_evaluated

CONV, DETECT = [-1, 1, "Conv", [16, 3, 2]], [[0], 1, "Detect", ["nc"]]


def _content(*rows: list[Any], **top: Any) -> dict[str, Any]:
    return {"nc": 2, "backbone": [list(CONV), *rows], "head": [list(DETECT)], **top}


# what the file holds (text, or a model dictionary), and what is said
FAULTS: dict[str, tuple[Any, str]] = {
    "empty": ("", "is not a model YAML; accepted: a mapping with the lists"),
    "list": ("[1, 2]", "is not a model YAML"),
    "not yaml": ("a: [", "is not YAML"),
    "a date that is none": ("nc: 2020-99-99", "is not YAML: month must be in"),
    "utf-16": ("nc: 2".encode("utf-16"), "is not YAML"),
    "no head": ({"nc": 2, "backbone": [CONV]}, "it has no list `head`"),
    "empty head": ({"nc": 2, "backbone": [CONV], "head": []}, "it has no list `head`"),
    "head is a mapping": ({"nc": 2, "backbone": [CONV], "head": {1: 2}}, "it has no list `head`"),
    "a row too short": (_content([-1, 1, "Conv"]), r"row 1: \[-1, 1, 'Conv'\] is not a row"),
    "huge stock channels": (_content([-1, 1, "Conv", [10**9, 3]]), r"row 1 \(Conv\): 1000000000 is too large"),
    "huge repeats": (_content([-1, 10**9, "Conv", [16]]), r"row 1 \(Conv\): number must be an integer from 1 to 1000"),
    "unknown name": (_content([-1, 1, "Nothing", [16]]), r"row 1 \(Nothing\): 'Nothing' is not known here"),
    "text channels": (_content([-1, 1, "Conv", ["x"]]), r"row 1 \(Conv\): the host cannot build it: \w+Error"),
    "negative channels": (_content([-1, 1, "Conv", [-8]]), r"row 1 \(Conv\): the host cannot build it"),
    "stock arguments": (_content([-1, 1, "Conv", []]), r"row 1 \(Conv\): the host cannot build it: IndexError"),
    "from a later layer": (_content([9, 1, "Conv", [16]]), r"row 1 \(Conv\): the host cannot build it: IndexError"),
    "channels that do not fit": (
        _content([-1, 1, "Conv_C3", [16, 3, 1, None, 3]]),
        r"row 1 \(Conv_C3\): the host cannot build it: ValueError",
    ),
    "a layer that does not run": (
        _content([-1, 1, "nn.Linear", [3, 4]]),
        r"row 1 \(Linear\): the host cannot build it: RuntimeError",
    ),
    "a rep row's value": (_content([-1, 1, "Conv_C3", [16, {"se": "maybe"}]]), r"row 1 \(Conv_C3\): se must be true"),
    "policy": (_content(rep={"block": 3}), "rep: block must be a name, got 3"),
    "a program": (_content(activation="__import__('os').getcwd()"), "activation: .* is not accepted"),
    "a program in a name": (_content([-1, 1, "print(1)", [16]]), r"row 1: 'print\(1\)' is no layer's name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_and_row(fault: str, tmp_path: Path) -> None:
    content, says = FAULTS[fault]
    file = tmp_path / "m.yaml"
    raw = yaml.safe_dump(content) if isinstance(content, dict) else content
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(YolorepError, match=says) as raised:
        build(str(file))
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)


def test_what_the_host_raises_for_its_own_models_is_left_to_it() -> None:
    """In Python, a model without rep rows fails as it does without yolorep."""
    tasks = import_module("ultralytics.nn.tasks")
    with pytest.raises(KeyError):
        tasks.DetectionModel(_content([-1, 1, "Nothing", [16]]), verbose=False)
    with pytest.raises(HostError, match=r"row 1 \(Nothing\): 'Nothing' is not known here"):
        tasks.DetectionModel(_content([-1, 1, "Nothing", [16]], rep="acb"), verbose=False)


def test_a_yolov5_model_names_its_file_too(tmp_path: Path) -> None:
    yolo = pytest.importorskip("yolov5.models.yolo")
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(_content([-1, 1, "Conv_C3", [16, {"se": 3}]])))
    with pytest.raises(BlockError, match=rf"^{file}: row 1 \(Conv_C3\): se must be true or false, got 3"):
        yolo.DetectionModel(str(file))


@pytest.mark.parametrize("text", ["nn.ReLU()", "torch.nn.LeakyReLU(0.1)", "nearest", "None", "nc * 2", "[1, 2]", "a b"])
def test_names_values_and_layers_may_be_evaluated(text: str) -> None:
    check_evaluated(_content([-1, 1, "Conv", [text]], activation="nn.ReLU()"))


@pytest.mark.parametrize(
    "text", ["exec('1')", "nn.f()", "(lambda: 1)()", "[x for x in ()]", "nn.ReLU().to(1)", "eval(a)"]
)
def test_nothing_else_may_be_evaluated(text: str) -> None:
    with pytest.raises(BlockError, match=r"row 1 \(Conv\): .* is not accepted"):
        check_evaluated(_content([-1, 1, "Conv", [text]]))
