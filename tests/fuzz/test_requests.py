"""Random options, policies, selections and rows: a request is accepted and means the same once written, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.profile import examples, one_line
from tests.fuzz.test_blocks import IDENTITIES, SPECS
from yolorep.blocks.registry import block_of, check_options
from yolorep.blocks.starts import STARTS
from yolorep.compare.plan import read
from yolorep.errors import YolorepError
from yolorep.host import ULTRALYTICS
from yolorep.hosts.ultralytics.build import build
from yolorep.model_yaml import ROW_KINDS, deployed, plan
from yolorep.placement import PRESETS
from yolorep.policy import OF_MODEL, Policy

pytest.importorskip("ultralytics")
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 70000), st.floats(), TEXTS)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
NAMES = st.sampled_from(SPECS) | TEXTS
SELECTIONS = st.sampled_from([*PRESETS, "neck 3x3", "model.1", "model.*", 1, 0]) | TEXTS | st.integers(-2, 40)


@st.composite
def mostly(draw: Any, usual: Any) -> Any:
    """The usual values, and anything else in one case of four."""
    return draw(ANYTHING) if draw(st.integers(0, 3)) == 0 else draw(usual)


POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "block": mostly(NAMES),
        "identity": mostly(st.sampled_from(IDENTITIES)),
        "select": mostly(st.lists(SELECTIONS, max_size=3) | SELECTIONS),
        "start": mostly(st.sampled_from(list(STARTS))),
        "colour": ANYTHING,
    },
)


@examples(200)
@given(mostly(st.builds("{}({}={})".format, NAMES, TEXTS, TEXTS) | NAMES))
def test_any_text_is_a_block_or_refused(spec: Any) -> None:
    try:
        check_options(str(spec), "auto")
        block_of(str(spec))
    except YolorepError as error:
        one_line(error)


@examples(200)
@given(POLICIES | ANYTHING)
def test_a_policy_is_read_back_as_it_was_written(given_policy: Any) -> None:
    try:
        policy = Policy.from_yaml(given_policy, accepted=OF_MODEL)
    except YolorepError as error:
        one_line(error)
        return
    written = yaml.safe_load(yaml.safe_dump(policy.to_yaml()))
    assert Policy.from_yaml(written) == policy


ARGUMENTS = st.lists(mostly(st.sampled_from([16, 8, 3, 1, 2, [1, 3], None, True, 0.5])), max_size=5)


@st.composite
def rows(draw: Any) -> list[Any]:
    """A row whose name is usually one of yolorep's, and whose arguments are usually of the right kind."""
    options = draw(st.lists(POLICIES, max_size=1))
    name = draw(mostly(st.sampled_from([*ROW_KINDS, "yolorep.Conv_C3", "Conv", "C3"])))
    return [draw(mostly(st.just(-1))), draw(mostly(st.just(1))), name, [*draw(ARGUMENTS), *options]]


def model_with(row: Any, policy: Any) -> dict[str, Any]:
    """A small detector's dictionary with this row, and this policy unless it is empty."""
    backbone = [[-1, 1, "Conv", [8, 3, 2]], row, [-1, 1, "Conv", [16, 3, 2]]]
    content = {"nc": 2, "backbone": backbone, "head": [[[2], 1, "Detect", ["nc"]]]}
    return {**content, "rep": policy} if policy != {} else content


@examples(100)
@given(mostly(rows()), POLICIES | st.just({}))
def test_any_row_is_built_or_refused(tmp_path_factory: pytest.TempPathFactory, row: Any, policy: Any) -> None:
    content = model_with(row, policy)
    before = copy.deepcopy(content)
    try:
        text = yaml.safe_dump(content)
    except yaml.YAMLError:  # characters that a YAML cannot hold
        return
    file = tmp_path_factory.mktemp("rows") / "yolo11n-fuzz.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        model: Any = build(str(file))
    except YolorepError as error:
        one_line(error)
    else:
        stock = deployed(model.yaml, ULTRALYTICS)
        assert "rep" not in stock or model.yaml.get("rep") is None
    try:
        plan(content, ULTRALYTICS)
    except YolorepError as error:
        one_line(error)
    assert repr(content) == repr(before)


@examples(100)
@given(
    st.dictionaries(
        st.sampled_from(["model", "data", "epochs", "seeds", "lr", "sweep", "batch", "int8", "optimizer", "seed"]),
        mostly(st.integers(1, 9) | st.just("yolo11n.yaml")),
    ),
    st.lists(NAMES, max_size=3),
)
def test_any_plan_of_a_comparison_is_read_or_refused(pairs: dict[str, Any], reps: list[str]) -> None:
    try:
        made = read(list(pairs.items()), reps)
    except YolorepError as error:
        one_line(error)
    else:
        assert len({arm.slug for arm in made.arms}) == len(made.arms)
