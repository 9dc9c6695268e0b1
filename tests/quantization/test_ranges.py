"""Ranges of activations: against numpy's percentiles, a full search, and the file that they end up in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.quantization.test_int8 import FEEDS, exported
from yolorep.quantization.int8 import quantize_onnx
from yolorep.quantization.ranges import OUTLIERS, RULES, STEPS, activation_ranges, mse_range, percentile_range
from yolorep.quantization.schemes import SCHEMES

Values = np.ndarray


def silu(x: Values) -> Values:
    return x / (1 + np.exp(-x))


RANDOM = np.random.default_rng(0)
SAMPLES = {
    "silu with outliers": np.concatenate([silu(RANDOM.normal(0, 2, 50_000)), [40.0]]),
    "relu": np.maximum(RANDOM.normal(0, 1, 50_000), 0),
    "both signs": RANDOM.standard_t(3, 50_000),
    "negative": -RANDOM.exponential(1, 50_000),
}


def squared_error(values: Values, low: float, high: float) -> float:
    step = (high - low) / STEPS
    rounded = low + step * np.clip(np.round((values - low) / step), 0, STEPS)
    return float(np.square(values - rounded).sum())


@pytest.mark.parametrize("name", SAMPLES)
def test_percentile_range_is_numpys(name: str) -> None:
    values = SAMPLES[name]
    counts, edges = np.histogram(values, bins=8192)
    low, high = np.quantile(values, [OUTLIERS, 1 - OUTLIERS], method="inverted_cdf")
    width = edges[1] - edges[0]
    assert percentile_range(counts, edges) == pytest.approx((min(low, 0), max(high, 0)), abs=3 * width)


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_range_is_as_good_as_a_full_search(name: str) -> None:
    values = SAMPLES[name]
    counts, edges = np.histogram(values, bins=8192)
    found = squared_error(values, *mse_range(counts, edges))
    smallest, largest = min(values.min(), 0), max(values.max(), 0)
    grid = [(a * smallest, b * largest) for a in np.geomspace(1, 0.02, 25) for b in np.geomspace(1, 0.02, 80)]
    best = min(squared_error(values, low, high) for low, high in grid if high > low)
    assert found <= 1.05 * best
    assert found <= squared_error(values, smallest, largest)


def test_a_constant_zero_has_a_range() -> None:
    """A channel that is dead on all calibration images."""
    for rule in RULES.values():
        low, high = rule(np.array([0, 100, 0]), np.array([-1.0, 0.0, 0.0, 1.0]))
        assert low <= 0 <= high


@pytest.mark.parametrize("name", RULES)
def test_ranges_reach_the_scales_of_the_file(name: str, tmp_path: Path) -> None:
    """An activation's scale is its range over 255 steps; images are counted one at a time."""
    source, out = exported(tmp_path), tmp_path / "q.onnx"
    taken = []

    def feeds():  # type: ignore[no-untyped-def]
        for feed in FEEDS:
            taken.append(feed)
            yield feed

    ranges = activation_ranges(source, feeds, RULES[name])
    assert len(taken) == len(FEEDS)
    quantize_onnx(source, out, SCHEMES[name], lambda: FEEDS, [])
    model = onnx.load(out)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = {node.input[0]: constants[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    shared = scales.keys() & ranges.keys()
    assert len(shared) >= 2
    for tensor in shared:
        width = ranges[tensor][0]["rmax"] - ranges[tensor][0]["rmin"]
        assert scales[tensor] == pytest.approx(width / STEPS, rel=1e-5)
