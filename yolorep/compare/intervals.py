"""Statistics of paired runs: a 95 % interval of the mean difference, and what it takes to settle a difference.

Two sources of chance are combined. *Seeds*: Student's t over the paired differences. *Images*: the standard error of
the mean difference under a bootstrap over the validation images, the same resampled images for all runs. A bootstrap
over three seeds would be too narrow: it draws the same seed three times in one case of nine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES, FEWEST = 200, 40
MOST_SEEDS = 100


@dataclass(frozen=True)
class Interval:
    """A mean paired difference and the half-width of its interval; infinite for one seed.

    seeds: number of pairs. spread: standard deviation of the pairs' differences. images: standard error that the
    choice of validation images adds, 0 if it is unknown.
    """

    difference: float
    half: float
    seeds: int
    spread: float
    images: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.difference) > self.half

    def seeds_to_decide(self) -> int | None:
        """Return how many seeds would settle a difference of this size with this spread; None: no number up to 100.

        Example:
            >>> interval([0.010, 0.020, 0.001]).seeds_to_decide()
            6
        """
        for seeds in range(max(2, self.seeds), MOST_SEEDS + 1):
            if abs(self.difference) > _half(self.spread, seeds, self.images):
                return seeds
        return None


def interval(differences: Sequence[float], images: float = 0.0) -> Interval:
    """Return the interval of the mean of paired differences.

    images: standard error that the choice of validation images adds.

    Example:
        >>> found = interval([0.02, 0.03, 0.025])
        >>> round(found.difference, 4), round(found.half, 4), found.decided
        (0.025, 0.0124, True)
    """
    count = len(differences)
    spread = stdev(differences) if count > 1 else math.inf
    return Interval(mean(differences), _half(spread, count, images), count, spread, images)


def _half(spread: float, seeds: int, images: float) -> float:
    if seeds < 2 or math.isinf(spread):
        return math.inf
    of_seeds = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * spread / math.sqrt(seeds)
    return math.hypot(of_seeds, stats.norm.ppf((1 + LEVEL) / 2) * images)


class Resampled:
    """mAP50-95 of runs on resampled validation images; every run sees the same resamples.

    budget: seconds; fewer resamples are drawn, at least `FEWEST`, where more would take longer.
    """

    def __init__(self, files: Sequence[Path], budget: float = 120.0) -> None:
        runs = {file: dict(np.load(file)) for file in files}
        images = {int(run["images"]) for run in runs.values()}
        if len(images) != 1:
            raise ValueError(f"runs were validated on different numbers of images: {sorted(images)}")
        count = images.pop()
        began = time.perf_counter()
        ones = np.ones(count, dtype=int)
        for run in runs.values():
            average_precision(run, ones)
        each = max(time.perf_counter() - began, 1e-6)
        self.resamples = max(FEWEST, min(RESAMPLES, int(budget / each)))
        generator = np.random.default_rng(0)
        weights = generator.multinomial(count, [1 / count] * count, size=self.resamples)
        self.values = {file: np.array([average_precision(run, row) for row in weights]) for file, run in runs.items()}

    def error(self, pairs: Sequence[tuple[Path, Path]]) -> float:
        """Return the standard error of the mean difference (second - first) of pairs of runs."""
        differences = np.mean([self.values[b] - self.values[a] for a, b in pairs], axis=0)
        return float(np.std(differences, ddof=1))


def average_precision(run: dict[str, np.ndarray], weights: np.ndarray) -> float:
    """Return mAP50-95 by the host's own computation, with each image counted `weights` times.

    run: the arrays that `compare.runs` stores.
    """
    from ultralytics.utils.metrics import ap_per_class

    predictions = np.repeat(np.arange(len(run["confidence"])), weights[run["prediction_image"]])
    targets = np.repeat(run["target"], weights[run["target_image"]])
    if not len(targets):
        return 0.0
    found = ap_per_class(
        run["hits"][predictions], run["confidence"][predictions], run["predicted"][predictions], targets
    )
    return float(found[5].mean()) if len(found[5]) else 0.0
