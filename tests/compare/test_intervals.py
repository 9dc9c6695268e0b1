"""Intervals of paired differences: their coverage, and the average precision of resampled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yolorep.compare.intervals import Resampled, average_precision, interval

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_an_interval_covers_the_truth_19_times_in_20(seeds: int) -> None:
    """With noise of seeds and of images, as many draws as make 1 % two standard errors."""
    truth, of_seeds, of_images, covered = 0.01, 0.02, 0.01, 0
    for _ in range(2000):
        image = RANDOM.normal(0, of_images)
        found = interval(truth + image + RANDOM.normal(0, of_seeds, seeds), of_images)
        covered += abs(found.difference - truth) <= found.half
    assert 0.93 < covered / 2000 <= 1.0


def test_a_bootstrap_over_three_seeds_alone_would_not_cover() -> None:
    """Why Student's t is used: percentiles of resampled seeds are too narrow."""
    covered = 0
    for _ in range(500):
        drawn = RANDOM.normal(0, 1, 3)
        means = RANDOM.choice(drawn, (400, 3)).mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        covered += low <= 0 <= high
    assert covered / 500 < 0.85


def test_one_seed_decides_nothing() -> None:
    found = interval([0.3])
    assert not found.decided
    assert found.half == np.inf


def test_seeds_to_decide_are_enough_and_one_fewer_is_not() -> None:
    found = interval([0.010, 0.020, 0.001])
    needed = found.seeds_to_decide()
    assert needed is not None
    spread, mean = found.spread, found.difference
    for seeds, decided in ((needed, True), (needed - 1, False)):
        drawn = np.linspace(-1, 1, seeds)
        drawn = mean + drawn / drawn.std(ddof=1) * spread
        assert interval(list(drawn)).decided == decided
    assert interval([0.001, -0.002, 0.0015], images=0.02).seeds_to_decide() is None


def stored(file: Path, quality: float, images: int = 40) -> Path:
    """Store three predictions and two targets per image; a share `quality` of the first two predictions is right."""
    random = np.random.default_rng(1)
    hits = np.zeros((3 * images, 10), dtype=bool)
    right = random.random(3 * images) < quality
    right[2::3] = False
    hits[right] = True
    image = np.repeat(np.arange(images), 3)
    np.savez_compressed(
        file,
        hits=hits,
        confidence=random.random(3 * images),
        predicted=np.zeros(3 * images),
        target=np.zeros(2 * images),
        prediction_image=image,
        target_image=np.repeat(np.arange(images), 2),
        images=np.array(images),
    )
    return file


def test_counting_an_image_twice_is_the_same_as_having_it_twice(tmp_path: Path) -> None:
    run = dict(np.load(stored(tmp_path / "a.npz", 0.6)))
    twice = dict(run)
    rows, targets = run["prediction_image"] == 3, run["target_image"] == 3
    for name in ("hits", "confidence", "predicted"):
        twice[name] = np.concatenate([run[name], run[name][rows]])
    twice["target"] = np.concatenate([run["target"], run["target"][targets]])
    twice["prediction_image"] = np.concatenate([run["prediction_image"], [40] * rows.sum()])
    twice["target_image"] = np.concatenate([run["target_image"], [40] * targets.sum()])
    weights = np.ones(40, dtype=int)
    weights[3] = 2
    assert average_precision(run, weights) == pytest.approx(average_precision(twice, np.ones(41, dtype=int)), abs=1e-9)
    assert average_precision(run, np.zeros(40, dtype=int)) == 0


def test_the_images_add_their_share_of_chance(tmp_path: Path) -> None:
    """The same model twice: no error. Two models: an error that falls with the number of images."""
    few = [stored(tmp_path / f"few{q}.npz", q, 20) for q in (0.5, 0.7)]
    many = [stored(tmp_path / f"many{q}.npz", q, 320) for q in (0.5, 0.7)]
    small, large = Resampled(few), Resampled(many)
    assert small.error([(few[0], few[0])]) == 0
    assert 2.5 < small.error([(few[0], few[1])]) / large.error([(many[0], many[1])]) < 6.5
    assert small.resamples == 200
    assert Resampled(few, budget=0).resamples == 40


def test_runs_on_other_images_are_refused(tmp_path: Path) -> None:
    files = [stored(tmp_path / f"{images}.npz", 0.5, images) for images in (10, 20)]
    with pytest.raises(ValueError, match="different numbers of images"):
        Resampled(files)
