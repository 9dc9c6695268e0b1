"""A user's class with the name of a rep row is what the user's YAML builds; `yolorep.NAME` asks for ours."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

import yolorep
from yolorep.blocks import Conv_C3
from yolorep.console import say_once
from yolorep.host import ULTRALYTICS, YOLOV5, Host, own_classes
from yolorep.model_yaml import ROW_KINDS, deployed

HOSTS = {"ultralytics.nn.tasks": ULTRALYTICS, "yolov5.models.yolo": YOLOV5}
ROWS = {"Conv_C3": [16, 3, 1], "C3Rep": [16], "BottleneckRep": [16]}


class Mine(nn.Module):
    """A layer that takes what either host hands to a class that it does not know."""

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(params=HOSTS)
def hosted(request: pytest.FixtureRequest) -> tuple[ModuleType, Host]:
    pytest.importorskip(request.param.partition(".")[0])
    return import_module(request.param), HOSTS[request.param]


def _model(module: ModuleType, name: str) -> Any:
    row = [-1, 1, name, list(ROWS[name.removeprefix("yolorep.")])]
    head = [[[1], 1, "Detect", ["nc", "anchors"] if "yolov5" in module.__name__ else ["nc"]]]
    scale = {"depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[1, 2, 3, 4]]}
    d = {"nc": 2, **scale, "backbone": [[-1, 1, "Conv", [16, 3, 2]], row], "head": head}
    return module.DetectionModel(d, ch=3)


@pytest.mark.parametrize("name", ROWS)
def test_the_users_class_is_built(
    name: str, hosted: tuple[ModuleType, Host], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _ = hosted
    assert any(isinstance(layer, Conv_C3) for layer in _model(module, name).modules())
    monkeypatch.setattr(module, name, Mine, raising=False)
    say_once.cache_clear()
    model = _model(module, name)
    assert type(model.model[1]) is Mine
    assert f"write yolorep.{name}" in capsys.readouterr().err
    assert yolorep.deploy(model).yaml["backbone"][1][2] == name
    _model(module, name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("taken", [True, False])
def test_a_prefix_asks_for_ours(
    name: str, taken: bool, hosted: tuple[ModuleType, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, host = hosted
    if taken:
        monkeypatch.setattr(module, name, Mine, raising=False)
    model = _model(module, f"yolorep.{name}")
    assert any(isinstance(layer, Conv_C3) for layer in model.modules())
    assert deployed(model.yaml, host)["backbone"][1][2] == ROW_KINDS[name].stock


def test_a_class_of_yolorep_that_a_tree_has_imported_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    common = ModuleType("models.common")
    common.Conv_C3, common.C3Rep = Conv_C3, Mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models.common", common)
    assert "C3Rep" in own_classes(YOLOV5, ROW_KINDS)
    assert "Conv_C3" not in own_classes(YOLOV5, ROW_KINDS)


def test_a_prefixed_classifier_is_a_classifier() -> None:
    tasks = import_module("ultralytics.nn.tasks")
    assert tasks.guess_model_task({"head": [[-1, 1, "yolorep.FC", ["nc"]]]}) == "classify"
    assert import_module("ultralytics.engine.model").guess_model_task({"head": [[-1, 1, "yolorep.FC", ["nc"]]]})
