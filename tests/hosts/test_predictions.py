"""What counts as the same result, task by task: things are paired one to one, and what differs is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from yolorep.errors import VerifyError
from yolorep.hosts.predictions import TASKS, Answer, compare, pairs, task_of

BOX = {"class": 1.0, "position": [10.0, 20.0, 30.0, 40.0], "confidence": 0.9}
CORNERS = [[0.0, 0.0], [8.0, 0.0], [8.0, 4.0], [0.0, 4.0]]


def answer(*things: dict[str, Any], **parts: Any) -> Answer:
    """Of boxes that are `BOX` but for what is given of each, with other parts beside them."""
    boxes = {name: torch.tensor([thing.get(name, value) for thing in things]) for name, value in BOX.items()}
    boxes["position"] = boxes["position"].reshape(-1, 4)
    return {**boxes, **{name: torch.as_tensor(value) for name, value in parts.items()}}


def moved(pixels: float) -> dict[str, Any]:
    return {"position": [10.0 + pixels, 20.0, 30.0, 40.0]}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([{}], [{}], [(0, 0)]),
        ([{}], [{**moved(0.4), "confidence": 0.9005}], [(0, 0)]),
        ([{}], [moved(0.6)], []),  # by more than half a pixel
        ([{}], [moved(float("nan"))], []),
        ([{}], [{"confidence": 0.902}], []),
        ([{}], [{"class": 2.0}], []),
        ([{}, moved(9)], [moved(9), {}], [(0, 1), (1, 0)]),  # in another order
        ([{}, {}], [{}], [(0, 0)]),  # a box is paired once
        ([], [{}], []),
    ],
)
def test_pairs_are_of_the_same_box_once(a: list[dict], b: list[dict], expected: list[tuple[int, int]]) -> None:
    assert pairs(TASKS["detect"], answer(*a), answer(*b)) == expected


def square(side: int, hole: int = 0) -> Tensor:
    mask = torch.zeros(1, 64, 64)
    mask[0, :side, :side] = 1
    mask[0, 0, :hole] = 0
    return mask


# Of each task, two answers to an image and whether they are the same.
CASES: dict[str, tuple[str, Answer, Answer, bool]] = {
    "a mask": ("segment", answer({}, mask=square(40)), answer({}, mask=square(40, 15)), True),
    "another mask": ("segment", answer({}, mask=square(40)), answer({}, mask=square(40, 17)), False),
    "one pixel of a small mask": ("segment", answer({}, mask=square(3)), answer({}, mask=square(3, 1)), True),
    "no masks": ("segment", answer(mask=torch.zeros(0, 1, 1)), answer(mask=torch.zeros(0, 1, 1)), True),
    "a keypoint": (
        "pose",
        answer({}, keypoints=[[[1.0, 2.0]]], visibility=[[[0.5]]]),
        answer({}, keypoints=[[[1.4, 2.0]]], visibility=[[[0.5]]]),
        True,
    ),
    "another keypoint": (
        "pose",
        answer({}, keypoints=[[[1.0, 2.0]]], visibility=torch.zeros(1, 1, 0)),
        answer({}, keypoints=[[[1.0, 3.0]]], visibility=torch.zeros(1, 1, 0)),
        False,
    ),
    "hidden": (
        "pose",
        answer({}, keypoints=[[[1.0, 2.0]]], visibility=[[[0.5]]]),
        answer({}, keypoints=[[[1.0, 2.0]]], visibility=[[[0.4]]]),
        False,
    ),
    "corners counted from another": (
        "obb",
        answer({}, corners=[CORNERS]),
        answer({}, corners=[CORNERS[1:] + CORNERS[:1]]),
        True,
    ),
    "turned": ("obb", answer({}, corners=[CORNERS]), answer({}, corners=[[c[::-1] for c in CORNERS]]), False),
    "probabilities": (
        "classify",
        {"class": torch.tensor([1]), "probability": torch.tensor([[0.3, 0.7]])},
        {"class": torch.tensor([1]), "probability": torch.tensor([[0.30005, 0.69995]])},
        True,
    ),
    "other probabilities": (
        "classify",
        {"class": torch.tensor([1]), "probability": torch.tensor([[0.3, 0.7]])},
        {"class": torch.tensor([1]), "probability": torch.tensor([[0.2, 0.8]])},
        False,
    ),
    "a class map": ("semantic", {"class map": square(64)}, {"class map": square(64, 4)}, True),
    "another class map": ("semantic", {"class map": square(64)}, {"class map": square(64, 5)}, False),
    "depth": ("depth", {"depth": torch.full((1, 2, 2), 40.0)}, {"depth": torch.full((1, 2, 2), 40.003)}, True),
    "another depth": ("depth", {"depth": torch.full((1, 2, 2), 4.0)}, {"depth": torch.full((1, 2, 2), 4.003)}, False),
    "no depth": ("depth", {"depth": torch.full((1, 2, 2), 4.0)}, {"depth": torch.full((1, 2, 2), torch.nan)}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_compare_tells_the_same_from_another(case: str) -> None:
    name, a, b, same = CASES[case]
    report = compare(TASKS[name], [(a, b)])
    assert report.ok is same
    assert report.differing == (not same)


def test_every_task_is_among_the_cases() -> None:
    assert {name for name, *_ in CASES.values()} == set(TASKS) - {"detect"}


def test_what_is_changed_gone_or_new_differs_once() -> None:
    images = [(answer({}, moved(50)), answer({}, moved(60))), (answer({}), answer()), (answer(), answer({}, {}))]
    report = compare(TASKS["detect"], images)
    assert (report.images, report.found, report.differing) == (3, 3, 4)
    assert not report.ok
    assert str(report) == (
        "3 boxes on 3 images: 4 differ; largest difference of a pair: position 0.0e+00 px, confidence 0.0e+00"
    )


def test_nothing_to_compare_is_said() -> None:
    report = compare(TASKS["obb"], [(answer(corners=torch.zeros(0, 4, 2)), answer(corners=torch.zeros(0, 4, 2)))])
    assert report.ok
    assert str(report) == "0 rotated boxes on 1 image, by either model: there was nothing to compare"


def test_other_numbers_of_classes_cannot_be_compared() -> None:
    two, three = ({"class": torch.tensor([0]), "probability": torch.ones(1, n)} for n in (2, 3))
    with pytest.raises(VerifyError, match=r"a probability of shape \(2,\) and \(3,\); they cannot be compared"):
        compare(TASKS["classify"], [(two, three)])


def test_an_unknown_task_is_told_by_name() -> None:
    with pytest.raises(VerifyError, match="results of task 'track' cannot be compared; accepted: detect, segment"):
        task_of("track")
