"""Presets in `select`: parts of the network and kinds of convolution, on every family of both hosts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import needs_package
from yolorep import BlockError, expand
from yolorep.placement import PRESETS
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")

# YAML → layers that its backbone and its head (the last row) are made of; the neck is between
FAMILIES = {
    "yolov5n.yaml": (range(10), [24]),
    "yolov8n.yaml": (range(10), [22]),
    "yolo11n.yaml": (range(11), [23]),
    "yolov8n-rtdetr.yaml": (range(10), [22]),
    "yolov8n-cls.yaml": (range(9), [9]),
}


def build(yaml: str) -> nn.Module:
    kind = ultralytics.RTDETR if "rtdetr" in yaml else ultralytics.YOLO
    return kind(yaml).model


def blocks(yaml: str, select: Any) -> set[str]:
    return set(rep_blocks(expand(build(yaml), select=select)))


def layers(names: set[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names}


@pytest.mark.parametrize("yaml", FAMILIES)
def test_sections_divide_what_the_default_takes(yaml: str) -> None:
    backbone, head = FAMILIES[yaml]
    default = blocks(yaml, None)
    expected = {
        "backbone": {name for name in default if layers({name}) <= set(backbone)},
        "head": {name for name in default if layers({name}) <= set(head)},
    }
    expected["neck"] = default - expected["backbone"] - expected["head"]
    for section, names in expected.items():
        if names:
            assert blocks(yaml, section) == names
        else:
            with pytest.raises(BlockError, match=f"'{section}' (matches none|selects)"):
                blocks(yaml, section)
    assert expected["backbone"]


def test_kinds_are_bottlenecks_and_3x3() -> None:
    model = build("yolov8n.yaml")
    default = blocks("yolov8n.yaml", None)
    inside = {name for name in default if ".m." in name}
    assert blocks("yolov8n.yaml", "bottlenecks") == inside
    assert blocks("yolov8n.yaml", "3x3") == {n for n in default if model.get_submodule(n).conv.kernel_size == (3, 3)}


COMBINED: dict[str, tuple[Any, Callable[[str, nn.Module], bool]]] = {
    "words": ("neck 3x3", lambda name, conv: 10 <= int(name.split(".")[1]) < 22 and conv.kernel_size == (3, 3)),
    "three words": (
        "neck bottlenecks model.1?.*",
        lambda name, conv: 10 <= int(name.split(".")[1]) < 20 and ".m." in name,
    ),
    "entries": (["head", 4], lambda name, conv: int(name.split(".")[1]) in (4, 22)),
    "pattern beside": (["neck 3x3", "model.1"], lambda name, conv: name == "model.1" or _neck_3x3(name, conv)),
}


def _neck_3x3(name: str, conv: Any) -> bool:
    return COMBINED["words"][1](name, conv)


@pytest.mark.parametrize("case", COMBINED)
def test_words_narrow_and_entries_widen(case: str) -> None:
    select, wanted = COMBINED[case]
    model = build("yolov8n.yaml")
    stock = {name: model.get_submodule(name).conv for name in blocks("yolov8n.yaml", None) | blocks("yolov8n.yaml", 4)}
    assert blocks("yolov8n.yaml", select) == {name for name, conv in stock.items() if wanted(name, conv)}


def test_a_preset_in_the_yaml_survives_a_rebuild() -> None:
    model = expand(build("yolov8n.yaml"), select=["neck 3x3", 1])
    assert model.yaml["rep"]["select"] == ["neck 3x3", 1]
    assert rep_blocks(type(model)(copy.deepcopy(model.yaml), verbose=False)) == rep_blocks(model)


REFUSED = {
    "part without a layer": ("yolov8n-rtdetr.yaml", "head", "'head' matches none of the"),
    "no neck": ("yolov8n-cls.yaml", "neck", "'neck' matches none of the"),
    "unknown word": ("yolov8n.yaml", "neck 5x5", "'neck 5x5' matches none of the"),
    "nothing left": ("yolov8n.yaml", "", "'' matches none of the"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_preset_that_takes_nothing_is_one_sentence(case: str) -> None:
    yaml, select, says = REFUSED[case]
    with pytest.raises(BlockError, match=says) as caught:
        expand(build(yaml), select=select)
    assert str(caught.value).endswith(f"or {', '.join(PRESETS)}")


def test_a_section_needs_a_yaml() -> None:
    from ultralytics.nn.modules.conv import Conv

    with pytest.raises(BlockError, match=r"^select: 'neck' needs a model that was built from a YAML; accepted"):
        expand(nn.Sequential(Conv(8, 8, 3)), select="neck")
    assert rep_blocks(expand(nn.Sequential(Conv(8, 8, 3)), select="3x3")) == ["0"]


def test_a_preset_whose_layers_gain_nothing_says_so() -> None:
    with pytest.raises(BlockError, match=r"'plain' .* adds no branch to any of the 18 layers that 'neck' selects"):
        expand(build("yolov8n.yaml"), "plain", select="neck")


YOLOV5 = """
import sys
from importlib import import_module
from yolorep import expand
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.stock_layers import rep_blocks
make_runnable()
from yolov5.models.yolo import Model
model = Model(str(import_module("yolov5").__path__[0]) + "/models/yolov5n.yaml")
for select in ("backbone", "neck", "head", "bottlenecks", "neck 3x3"):
    try:
        names = rep_blocks(expand(model, select=select))
        print(sorted({int(name.split(".")[1]) for name in names}), all(".m." in name for name in names))
    except Exception as error:
        print(error)
"""


@needs_package
def test_yolov5_has_the_same_presets() -> None:
    backbone, neck, head, bottlenecks, narrow = run_python(YOLOV5).splitlines()[-5:]
    assert backbone == "[1, 2, 3, 4, 5, 6, 7, 8] False"
    assert neck == "[13, 17, 18, 20, 21, 23] False"
    assert head.startswith("select: 'head' matches none of the ")  # its convolutions have no batch norm
    assert bottlenecks == "[2, 4, 6, 8, 13, 17, 20, 23] True"
    assert narrow == "[13, 17, 18, 20, 21, 23] False"
