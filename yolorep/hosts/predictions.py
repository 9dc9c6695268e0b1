"""A model's predictions for an image, task by task, and when two models predict the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from yolorep.errors import VerifyError
from yolorep.numerics import largest_difference, relative_error

Answer = Mapping[str, Tensor]  # one image's n predictions: field name → tensor (n, ...)

PIXELS = 0.5  # a box, a corner or a keypoint moved by less is the same one
CONFIDENCE = 1e-3
MASK = 0.01  # of a mask's area
PROBABILITY = 1e-4
CLASS_MAP = 1e-3  # of an image's pixels
DEPTH = 1e-4  # of the greatest depth
LEAST_AREA = 100  # pixels; in a smaller mask, one that lies on the threshold would weigh too much


@dataclass(frozen=True)
class Part:
    """One field of a prediction. difference: of two values; up to `tolerance` they are equal. unit: of both."""

    name: str
    difference: Callable[[Tensor, Tensor], float]
    tolerance: float
    unit: str = ""

    def of(self, a: Answer, i: int, b: Answer, j: int) -> float:
        """Return the difference between prediction `i` of one model and prediction `j` of the other.

        Raises:
            VerifyError: the two have different shapes.
        """
        x, y = a[self.name][i], b[self.name][j]
        if x.shape != y.shape:
            shapes = f"of shape {tuple(x.shape)} and {tuple(y.shape)}"
            raise VerifyError(f"the models answer with a {self.name} {shapes}; they cannot be compared")
        return self.difference(x, y)


@dataclass(frozen=True)
class Task:
    """How the predictions for one image are compared.

    nouns: the predictions, in plural. paired: fields that match a prediction with one of the other model; empty if an
    image has one prediction. judged: fields that must then be equal too. pixels: the usual image size.
    """

    nouns: str
    paired: tuple[Part, ...] = ()
    judged: tuple[Part, ...] = ()
    pixels: int = 640

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.paired + self.judged


@dataclass(frozen=True)
class ResultReport:
    """Predictions of two models for the same images.

    found: predictions of the first model. differing: those changed, gone or new. largest: difference by field.
    """

    task: Task
    images: int
    found: int
    differing: int
    largest: dict[str, float]

    @property
    def ok(self) -> bool:
        return not self.differing

    def __str__(self) -> str:
        where = f"{self.images} image{'s' * (self.images != 1)}"
        if not self.found and not self.differing:
            return f"0 {self.task.nouns} on {where}, by either model: there was nothing to compare"
        differences = (f"{p.name} {self.largest[p.name]:.1e}{p.unit}" for p in self.task.parts if p.tolerance)
        found = f"{self.found} {self.task.nouns} on {where}: {self.differing} differ"
        return f"{found}; largest difference of a pair: {', '.join(differences)}"


def compare(task: Task, answers: Iterable[tuple[Answer, Answer]]) -> ResultReport:
    """Compare the predictions of two models, image by image.

    Raises:
        VerifyError: a field has different shapes.
    """
    images, found, differing = 0, 0, 0
    largest = {part.name: 0.0 for part in task.parts}
    for a, b in answers:
        images, found = images + 1, found + _count(a)
        differing += max(_count(a), _count(b))
        for i, j in pairs(task, a, b):
            same = True
            for part in task.parts:
                difference = part.of(a, i, b, j)
                same &= difference <= part.tolerance
                if not difference <= largest[part.name]:  # not max(): it would lose a NaN
                    largest[part.name] = difference
            differing -= same
    return ResultReport(task, images, found, differing, largest)


def pairs(task: Task, a: Answer, b: Answer) -> list[tuple[int, int]]:
    """Return the indices of equal predictions of two models; each prediction at most once."""
    free, result = list(range(_count(b))), []
    for i in range(_count(a)):
        for j in free:
            if all(part.of(a, i, b, j) <= part.tolerance for part in task.paired):
                result.append((i, j))
                free.remove(j)
                break
    return result


def _count(answer: Answer) -> int:
    return len(next(iter(answer.values())))


def _unequal(a: Tensor, b: Tensor) -> float:
    return float(a != b)


def _turned(a: Tensor, b: Tensor) -> float:
    """Return how far corners (4, 2) moved: the least of four orders, since a rotated box has no first corner."""
    return min(largest_difference(a, b.roll(first, 0)) for first in range(4))


def _outside(a: Tensor, b: Tensor) -> float:
    """Return the share of two masks (height, width) that only one of them covers: 1 - IoU."""
    a, b = a > 0, b > 0
    return float((a ^ b).sum() / (a | b).sum().clamp_min(LEAST_AREA))


def _share(a: Tensor, b: Tensor) -> float:
    return float((a != b).double().mean())


CLASS = Part("class", _unequal, 0)
SCORE = Part("confidence", largest_difference, CONFIDENCE)
BOX = (CLASS, Part("position", largest_difference, PIXELS, " px"), SCORE)
KEYPOINTS = Part("keypoints", largest_difference, PIXELS, " px"), Part("visibility", largest_difference, CONFIDENCE)

# By ultralytics' names of tasks, which include the names in YOLOv5 trees.
TASKS: dict[str, Task] = {
    "detect": Task("boxes", BOX),
    "segment": Task("boxes", BOX, (Part("mask", _outside, MASK, " of its area"),)),
    "pose": Task("boxes", BOX, KEYPOINTS),
    "obb": Task("rotated boxes", (CLASS, Part("corners", _turned, PIXELS, " px"), SCORE)),
    "classify": Task("predictions", judged=(CLASS, Part("probability", largest_difference, PROBABILITY)), pixels=224),
    "semantic": Task("class maps", judged=(Part("class map", _share, CLASS_MAP, " of the pixels"),)),
    "depth": Task("depth maps", judged=(Part("depth", relative_error, DEPTH, " of the greatest"),)),
}


def task_of(name: Any) -> Task:
    """Return the task of this name.

    Raises:
        VerifyError: its predictions cannot be compared.
    """
    if name in TASKS:
        return TASKS[name]
    raise VerifyError(f"results of task {name!r} cannot be compared; accepted: {', '.join(TASKS)}")
