"""What a comparison found: a row for every arm, and a sentence for every candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean

from yolorep.compare.costs import Cost
from yolorep.compare.intervals import Interval, Resampled, interval
from yolorep.compare.plan import EQUAL_EPOCHS, EQUAL_TIME, STOCK, Plan
from yolorep.compare.stages import Trained

POINTS = 100


@dataclass(frozen=True)
class Row:
    """One arm. equal_epochs, equal_time: paired difference from stock in mAP50-95; None for stock itself.

    factor: multiple of the learning rate. time: seconds of an epoch / stock's. epochs_for_time: stock's epochs in the
    time of this arm. int8: loss of mAP50-95 in 8 bits, in points, for each seed.
    """

    arm: str
    factor: float
    map50: float
    map: float
    equal_epochs: Interval | None
    equal_time: Interval | None
    epochs_for_time: int | None
    time: float
    cost: Cost
    int8: tuple[float, ...] = ()


def rows(plan: Plan, trained: Trained, costs: dict[str, Cost], int8: dict[str, tuple[float, ...]]) -> list[Row]:
    """Return a row for every arm, stock first."""
    files = {trained.images(*key) for key in trained.runs}
    resampled = Resampled(sorted(files))
    found = []
    for arm in plan.arms:
        results = [trained.result(arm.name, seed, plan.epochs) for seed in range(plan.seeds)]
        epochs = trained.epochs_for_time.get(arm.name)
        against = None if epochs is None else _difference(plan, trained, resampled, arm.name, plan.epochs)
        in_time = None if epochs is None else _difference(plan, trained, resampled, arm.name, epochs)
        found.append(
            Row(
                arm.name,
                trained.factors[arm.name],
                mean(result["mAP50"] for result in results),
                mean(result["mAP50-95"] for result in results),
                against,
                in_time,
                epochs,
                trained.time[arm.name],
                costs[arm.name],
                int8.get(arm.name, ()),
            )
        )
    return found


def _difference(plan: Plan, trained: Trained, resampled: Resampled, arm: str, stock_epochs: int) -> Interval:
    """Compare an arm with stock trained for `stock_epochs`."""
    keys = [((STOCK, seed, stock_epochs), (arm, seed, plan.epochs)) for seed in range(plan.seeds)]
    differences = [trained.result(*b)["mAP50-95"] - trained.result(*a)["mAP50-95"] for a, b in keys]
    return interval(differences, resampled.error([(trained.images(*a), trained.images(*b)) for a, b in keys]))


def sentences(plan: Plan, found: list[Row], trained: Trained) -> list[str]:
    """Return what the comparison shows, what it cannot show, and what weakens it."""
    told = []
    for row in found[1:]:
        for name, one in ((EQUAL_EPOCHS, row.equal_epochs), (EQUAL_TIME, row.equal_time)):
            if one is not None:
                told.append(f"{row.arm} at {name}: {verdict(one)}.")
    for arm in trained.at_the_edge():
        told.append(
            f"The best learning rate of {arm}, x{trained.factors[arm]:g}, is at the edge of those tried; "
            "lr= takes a wider list."
        )
    if len(found) > 2:
        told.append(f"Each interval is at 95 %: with {len(found) - 1} candidates, one may seem decided by chance.")
    return told


def verdict(found: Interval) -> str:
    """Return a paired difference in words.

    Example:
        >>> verdict(interval([0.02, 0.03, 0.025]))
        '+2.50 ± 1.24 points of mAP50-95, better than stock on this data'
    """
    size = points(found)
    if found.seeds < 2:
        return f"{size} points of mAP50-95 with one seed, which shows nothing; 3 seeds or more give an interval"
    if found.decided:
        return f"{size} points of mAP50-95, {'better' if found.difference > 0 else 'worse'} than stock on this data"
    if not found.difference:
        return f"{size} points of mAP50-95, no difference"
    more = found.seeds_to_decide()
    images = 1.96 * found.images
    if more is not None:
        settle = f"{more} seeds would settle a difference of this size"
    elif images >= abs(found.difference):
        settle = "more seeds would not settle a difference of this size, more validation images would"
    else:
        settle = "not even 100 seeds would settle a difference of this size"
    return f"{size} points of mAP50-95, no difference that this data can show; {settle}"


def points(found: Interval) -> str:
    """Return a difference and its half-width in points, as text."""
    half = "" if math.isinf(found.half) else f" ± {POINTS * found.half:.2f}"
    return f"{POINTS * found.difference:+.2f}{half}"
