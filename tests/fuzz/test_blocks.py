"""Random blocks and nests of blocks: folding keeps the function, refuses with an error of yolorep, or is not asked."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import nn

from tests.fuzz.profile import examples, one_line
from tests.helpers import assert_same, randomize_
from yolorep import C3, Bottleneck, Conv_C3, deploy
from yolorep.blocks import BLOCKS
from yolorep.errors import BlockError, FoldError
from yolorep.folding import fold

IDENTITIES = ["auto", "paper", "conv", "average", "select", "interpolate", "none"]
SPECS = [*(name for name in BLOCKS if name != "plain"), "plain", "mobileone(branches=2)", "csla(scales=learned)"]


@st.composite
def conv_arguments(draw: Any) -> dict[str, Any]:
    """Arguments of a Conv_C3 with few channels: any kernel, stride, padding, groups and dilation that torch takes."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    kernel = draw(st.sampled_from([1, 1, 3, 3, 3, 5, 7, (1, 3), (3, 1), (5, 3), 2, 4]))
    return {
        "c1": groups * draw(st.integers(1, 4)),
        "c2": groups * draw(st.integers(1, 4)),
        "k": kernel,
        "s": draw(st.sampled_from([1, 1, 2, 3])),
        "p": draw(st.sampled_from([None, None, None, 0, 1, 2, 4])),
        "g": groups,
        "d": draw(st.sampled_from([1, 1, 1, 2, 3])),
        "act": draw(st.sampled_from([True, False])),
        "block": draw(st.sampled_from(SPECS)),
        "identity": draw(st.sampled_from(IDENTITIES)),
        "se": draw(st.booleans()),
    }


def made(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module | None:
    """The layer, ready to be folded; None where it is refused in one sentence."""
    try:
        return randomize_(kind(*args, **kwargs)).double().eval()
    except BlockError as error:
        one_line(error)
        return None


def assert_folds(block: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Deployed, it computes the same, has no batch norm left, and folding again changes nothing."""
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    try:
        before = block(x)
    except RuntimeError as error:  # an input smaller than the kernel
        if not re.search("Kernel size can't be greater|Output size is too small", str(error)):
            raise
        return
    deployed = deploy(copy.deepcopy(block))
    assert_same(before, deployed(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    again = deploy(copy.deepcopy(deployed))
    assert all(torch.equal(a, b) for a, b in zip(deployed.parameters(), again.parameters(), strict=True))


@examples(60)
@given(conv_arguments(), st.tuples(st.integers(5, 12), st.integers(5, 12)))
def test_any_convolution_folds_or_is_refused(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    block = made(Conv_C3, **arguments)
    if block is not None:
        assert_folds(block, arguments["c1"], size)


@examples(25)
@given(st.data())
def test_any_nest_of_blocks_folds(data: st.DataObject) -> None:
    channels = [data.draw(st.integers(2, 6)) * 2 for _ in range(data.draw(st.integers(2, 4)))]
    layers: list[nn.Module] = []
    for c1, c2 in pairwise(channels):
        kind = data.draw(st.sampled_from([Conv_C3, Bottleneck, C3]))
        rep = {"block": data.draw(st.sampled_from(SPECS)), "identity": data.draw(st.sampled_from(IDENTITIES))}
        layer = made(kind, c1, c2, **rep)
        note(f"{kind.__name__}({c1}, {c2}, {rep})")
        if layer is None:
            return
        layers.append(layer)
    assert_folds(nn.Sequential(*layers).eval(), channels[0], (9, 8))


@st.composite
def linear_layers(draw: Any, channels: int, depth: int = 2) -> tuple[nn.Module, int]:
    """A nest of layers, linear or nearly so, and its number of output channels."""
    kinds = ["conv", "norm", "identity", "pool", "dropout", "activation"] + (["sequential"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
        out = groups * draw(st.integers(1, 3))
        kernel = draw(st.sampled_from([1, 3, (1, 3), 2]))
        options = {"padding": draw(st.sampled_from([0, 0, 1])), "bias": draw(st.booleans())}
        return nn.Conv2d(channels, out, kernel, draw(st.sampled_from([1, 1, 2])), groups=groups, **options), out
    if kind == "norm":
        return nn.BatchNorm2d(channels, affine=draw(st.booleans())), channels
    if kind == "pool":
        return nn.AvgPool2d(draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))), channels
    if kind == "sequential":
        parts, out = [], channels
        for _ in range(draw(st.integers(0, 3))):
            part, out = draw(linear_layers(out, depth - 1))
            parts.append(part)
        return nn.Sequential(*parts), out
    return {"identity": nn.Identity, "dropout": nn.Dropout2d, "activation": nn.ReLU}[kind](), channels


@examples(60)
@given(st.data())
def test_a_nest_of_layers_is_folded_exactly_or_refused(data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from([1, 2, 4]))
    layer, _ = data.draw(linear_layers(channels))
    randomize_(layer).double().eval()
    x = torch.randn(2, channels, 13, 12, dtype=torch.float64)
    try:
        folded = fold(layer)
    except FoldError as error:
        one_line(error)
        return
    try:
        expected = layer(x)
    except RuntimeError:  # the input is too small
        return
    assert_same(expected, folded(x))
