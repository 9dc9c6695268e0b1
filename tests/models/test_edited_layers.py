"""Convolution layers that people edited in their tree are recognized by what they compute, and left alone by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from yolorep import HostError, deploy, expand
from yolorep.stock_layers import edited, rep_blocks


class Attention(nn.Module):
    """An attention that people put into `Conv`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def _attention(layer: Any) -> None:
    base = type(layer)
    layer.attention = Attention()
    layer.__class__ = type("Conv", (base,), {"forward": lambda self, x: self.attention(base.forward(self, x))})
    layer.__class__.__module__ = "models.common"


def _forward(layer: Any) -> None:
    """Without another child: only the forward tells."""
    base = type(layer)
    layer.__class__ = type("Conv", (base,), {"forward": lambda self, x: base.forward(self, x) * 2})
    layer.__class__.__module__ = "models.common"


def _forward_of_the_object(layer: Any) -> None:
    """As a patch of one layer does: the class is stock."""
    base = type(layer)
    layer.forward = lambda x: base.forward(layer, x) * 2


def _group_norm(layer: Any) -> None:
    layer.bn = nn.GroupNorm(4, layer.conv.out_channels)


def _operator(layer: Any) -> None:
    layer.conv = nn.Sequential(layer.conv)


def _partial_convolution(layer: Any) -> None:
    layer.conv.__class__ = type("PartialConv", (nn.Conv2d,), {})


def _functional(layer: Any) -> None:
    del layer.act
    layer.act = nn.functional.silu


def _blur(layer: Any) -> None:
    layer.blur = nn.AvgPool2d(3, 1, 1)


EDITS: dict[str, tuple[Callable[[Any], None], str]] = {
    "attention": (_attention, "it has a layer 'attention'"),
    "forward": (_forward, "the forward of models.common.Conv computes something else"),
    "forward of the object": (_forward_of_the_object, "its forward is replaced on the layer itself"),
    "group norm": (_group_norm, "its bn is GroupNorm"),
    "operator": (_operator, "its conv is Sequential"),
    "convolution class": (_partial_convolution, "its conv is PartialConv"),
    "functional activation": (_functional, "its activation is not a layer"),
    "another layer": (_blur, "it has a layer 'blur'"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_layer_is_left_with_a_warning_and_the_others_are_expanded(edit: str, stock: nn.Module) -> None:
    change, says = EDITS[edit]
    layer: Any = stock.model[3]
    change(layer)
    assert edited(layer) == says
    with pytest.warns(UserWarning, match=f"left without branches: model.3: {says}"):
        rep = expand(stock)
    assert "model.3" not in rep_blocks(rep)
    assert "model.5" in rep_blocks(rep)
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(stock(x)[0], rep(x)[0], atol=1e-4)
    assert torch.allclose(stock(x)[0], deploy(rep)(x)[0], atol=1e-3)


def test_many_edited_layers_are_one_warning(stock: nn.Module) -> None:
    layers = [stock.model[index] for index in (1, 3, 5)]
    for layer in layers:
        _blur(layer)
    with pytest.warns(UserWarning, match="left without") as warned:
        expand(stock)
    assert [str(w.message) for w in warned] == [
        "left without branches: model.1 and 2 more layers: it has a layer 'blur'"
    ]


def test_a_model_of_edited_layers_alone_is_refused_by_name(stock: nn.Module) -> None:
    for layer in list(stock.modules()):
        if type(layer).__name__ == "Conv":
            _blur(layer)
    with pytest.raises(HostError, match=r"its convolutions are edited, so that none can be expanded .*'blur'"):
        expand(stock)


def test_layers_of_the_host_are_not_edited(stock: nn.Module) -> None:
    assert {edited(layer) for layer in stock.modules() if type(layer).__name__ in ("Conv", "DWConv")} == {None}


@pytest.mark.parametrize("request_", [{"rep": "repvgg"}, {"head": [[-1, 1, "Conv_C3", [16]]]}], ids=["policy", "row"])
def test_a_yaml_that_asks_for_blocks_on_edited_layers_alone_is_refused(
    request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches were requested; a model without any would train as if it had them."""
    tasks = pytest.importorskip("ultralytics.nn.tasks")

    class Conv(tasks.Conv):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.bn = nn.GroupNorm(4, self.conv.out_channels)

    Conv.__module__ = tasks.Conv.__module__
    monkeypatch.setattr(tasks, "Conv", Conv)
    yaml = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[-1, 1, "Conv", [16]]], **request_}
    with (
        pytest.warns(UserWarning, match=r"left without branches"),
        pytest.raises(HostError, match=r"its bn is GroupNorm"),
    ):
        tasks.parse_model(yaml, 3, verbose=False)
