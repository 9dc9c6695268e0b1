"""Which layers gain from a block, which of them a request takes, and the messages about the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from yolorep import BlockError, expand
from yolorep.blocks.registry import BLOCKS, register_block
from yolorep.errors import DeclarationError
from yolorep.placement import COPIES, COSTLY, PRESETS, Layout, chosen, gains, why_without_branches
from yolorep.policy import Policy
from yolorep.stock_layers import stock_convs

conv = pytest.importorskip("ultralytics.nn.modules.conv")
block = pytest.importorskip("ultralytics.nn.modules.block")

NONE = Layout({}, ())
# name: (arguments of Conv, the message about it with repvgg)
LAYERS: dict[str, tuple[tuple, str]] = {
    "3x3": ((8, 8, 3), "stock: nothing asks for branches here"),
    "3x3 to more channels": ((8, 16, 3, 2), "stock: nothing asks for branches here"),
    "1x1": ((8, 8, 1), "stock: nothing asks for branches here"),
    "1x1 to more channels": ((8, 16, 1), COPIES),
    "1x1 strided": ((8, 8, 1, 2), COPIES),
    "even": ((8, 8, (6, 2), 2, 2), "no branch of repvgg fits beside a 6x2 kernel"),
    "depthwise": ((8, 8, 3, 1, None, 8), COSTLY),
    "grouped": ((8, 8, 3, 1, None, 4), "stock: nothing asks for branches here"),
}


def named(*layers: str) -> list[tuple[str, Any]]:
    """The stock convolutions of a model whose names are model.0, model.1 and so on."""
    model = nn.Module()
    model.model = nn.Sequential(*(conv.Conv(*LAYERS[layer][0]) for layer in layers))
    return list(stock_convs(model))


def taken(layers: list[str], select: Any, name: str = "repvgg", layout: Layout = NONE) -> list[str]:
    return [layers[int(path.split(".")[1])] for path, _ in chosen(named(*layers), select, name, "auto", layout)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_without_branches_is_told_why(layer: str) -> None:
    arguments, says = LAYERS[layer]
    made = conv.Conv(*arguments)
    assert gains(made, "repvgg", "auto") is (says not in (COPIES, LAYERS["even"][1]))
    for policy in (None, Policy(), Policy("mobileone", "none")):
        told = why_without_branches("model.3.cv1", made, policy)
        assert told == says.replace("repvgg", "mobileone" if policy and policy.block == "mobileone" else "repvgg")
    assert why_without_branches("model.3", made, Policy(select=("model.4",))) == "not selected"


def test_a_layer_in_an_attention_is_costly() -> None:
    layer = conv.Conv(8, 8, 3)
    assert why_without_branches("model.9.attn.proj", layer, None) == COSTLY
    assert why_without_branches("model.9.attn2.proj", layer, None) != COSTLY


def test_a_layer_to_which_the_block_adds_nothing_does_not_gain() -> None:
    layer = conv.Conv(8, 8, 3)
    assert gains(layer, "plain", "auto") is False
    says = why_without_branches("model.3", layer, Policy("plain", "auto"))
    assert says == "no branch of plain fits beside a 3x3 kernel"
    says = why_without_branches("model.3", conv.Conv(8, 8, 1), Policy("plain", "auto"))
    assert says == "no branch of plain fits beside a 1x1 kernel"


@pytest.fixture
def wrong() -> Iterator[str]:
    """A registered block whose declaration is wrong."""
    register_block("wrong")(lambda site: {"branch": "text"})
    yield "wrong"
    del BLOCKS["wrong"]


def test_a_wrong_declaration_is_an_error_and_no_layer_without_gain(wrong: str) -> None:
    with pytest.raises(DeclarationError, match="block 'wrong'"):
        gains(conv.Conv(8, 8, 3), wrong, "auto")


def test_the_default_takes_what_gains_and_costly_layers_only_if_there_are_no_others() -> None:
    assert taken(list(LAYERS), None) == ["3x3", "3x3 to more channels", "1x1", "grouped"]
    assert taken(["1x1 strided", "depthwise", "even"], None) == ["depthwise"]
    assert chosen([], None, "repvgg", "auto", NONE) == []


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (1, ["even"]),  # an entry without a preset takes what it names: `expand` then says why it does not fit
        ("model.[03]", ["3x3", "depthwise"]),
        ("*", ["3x3", "even", "1x1", "depthwise"]),
        ("3x3", ["3x3"]),
        (["3x3", 2], ["3x3", "1x1"]),
        (["3x3", "model.3", 3], ["3x3", "depthwise"]),
        ("3x3 model.3", ["depthwise"]),
        ("model.3 3x3", ["depthwise"]),
        ("neck", ["1x1"]),
        (["head", "backbone"], ["3x3", "depthwise"]),
        ("model.3  head", ["depthwise"]),
        (lambda name, layer: name != "model.2" and layer.conv.groups == 1, ["3x3", "even"]),
    ],
    ids=lambda value: "function" if callable(value) else str(value),
)
def test_entries_take_what_they_name_in_the_order_of_the_model(select: Any, expected: list[str]) -> None:
    layout = Layout({"backbone": range(2), "neck": range(2, 3), "head": range(3, 4)}, ())
    assert taken(["3x3", "even", "1x1", "depthwise"], select, layout=layout) == expected


ACCEPTED = f"layer indices and name patterns, such as 'model.0', or {', '.join(PRESETS)}"
REFUSED: dict[str, tuple[list[str], Any, str, str]] = {
    "idle": (
        ["3x3"],
        [7, 0, "x"],
        "repvgg",
        f"select: 7, 'x' matches none of the 1 stock convolutions; accepted: {ACCEPTED}",
    ),
    "empty": (
        ["3x3"],
        [],
        "repvgg",
        f"select: an empty list matches none of the 1 stock convolutions; accepted: {ACCEPTED}",
    ),
    "spaces": (["3x3"], " ", "repvgg", f"select: ' ' matches none of the 1 stock convolutions; accepted: {ACCEPTED}"),
    "no layer": (
        [],
        "x",
        "repvgg",
        f"select: 'x' matches none of the 0 stock convolutions; accepted: {ACCEPTED.replace('.0', '.1')}",
    ),
    "part without a YAML": (
        ["3x3"],
        "3x3 neck",
        "repvgg",
        "select: 'neck' needs a model that was built from a YAML; accepted: layer indices and name patterns",
    ),
    "no branch": (
        ["3x3", "1x1"],
        None,
        "plain",
        "block 'plain' with identity 'auto' adds no branch to any of 2 layers",
    ),
    "no branch of a preset": (
        ["3x3", "1x1"],
        "3x3",
        "plain",
        "block 'plain' with identity 'auto' adds no branch to any of the 1 layers that '3x3' selects",
    ),
    "copies": (
        ["even", "1x1 strided"],
        None,
        "repvgg",
        "block 'repvgg' with identity 'auto' adds no branch to any of 2 layers",
    ),
    "none fits": (
        ["even", "even"],
        None,
        "repvgg",
        "block 'repvgg' with identity 'auto' adds no branch to any of 2 layers: a 1x1 branch does not fit beside a "
        "(6, 2) convolution with padding (2, 2); accepted: odd kernels, padding of at least dilation * (k - 1) / 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_takes_nothing_says_so(case: str) -> None:
    layers, select, name, says = REFUSED[case]
    with pytest.raises(BlockError) as caught:
        chosen(named(*layers), select, name, "auto", NONE)
    assert str(caught.value) == says


def test_an_index_is_of_the_models_own_list() -> None:
    layer = conv.Conv(8, 8, 3)
    names = ["model.3", "model.3.cv1", "model.31", "model.x.3", "3", "head.3", "model"]
    layers = [(name, layer) for name in names]
    assert [name for name, _ in chosen(layers, 3, "repvgg", "auto", NONE)] == names[:2]
    with pytest.raises(BlockError, match=r"select: -1 matches none"):
        chosen(layers, -1, "repvgg", "auto", NONE)


def test_the_layout_names_parts_and_bottlenecks() -> None:
    class Mine(block.Bottleneck):
        pass

    class Bottlenecks(nn.Module):
        pass

    model = nn.Sequential(conv.Conv(8, 8), nn.Sequential(block.Bottleneck(8, 8), Mine(8, 8)), Bottlenecks())
    assert Layout.of(model, None) == Layout({}, ("1.0", "1.1"))
    rows = {"backbone": ["row"], "head": ["row", "row"]}
    parts = {"backbone": range(1), "neck": range(1, 2), "head": range(2, 3)}
    assert Layout.of(model, rows, "model.") == Layout(parts, ("model.1.0", "model.1.1"))
    assert Layout.of(model, "yolov5n.yaml").sections == {}


def test_a_bottleneck_holds_what_begins_with_its_whole_name() -> None:
    layers = [(name, conv.Conv(8, 8, 3)) for name in ("model.1.cv1", "model.11.cv1", "model.2")]
    found = chosen(layers, "bottlenecks", "repvgg", "auto", Layout({}, ("model.1", "model.4")))
    assert [name for name, _ in found] == ["model.1.cv1"]


def test_identity_decides_what_fits() -> None:
    made = conv.Conv(8, 16, 3, 2)
    assert gains(made, "plain", "average") is False
    assert gains(made, "acb", "average") is True
    assert gains(conv.Conv(8, 8, 3, 1, 0), "repvgg", "average") is False
    assert gains(conv.Conv(8, 8, 1), "repvgg", "auto") is True
    assert "branch_identity" in dict(expand(nn.Sequential(made), identity="average")[0].named_children())
