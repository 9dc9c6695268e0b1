"""Ranges of activations for 8 bits from histograms: what they leave out, and what they round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from yolorep.quantization.graph import Array

OUTLIERS = 1e-4  # share of the values that percentile ranges ignore, at either end
BINS = 8192  # of the first image's histogram; later images with larger values add bins of the same width
STEPS = 255  # between the smallest and the largest of 256 values
FRACTIONS = np.geomspace(1, 0.02, 80)  # of the whole range, tried by `mse_range`
Rule = Callable[[Array, Array], tuple[float, float]]  # counts and edges of a histogram → smallest and largest value


def percentile_range(counts: Array, edges: Array) -> tuple[float, float]:
    """Return the range without the smallest and the largest 0.01 % of the values; it includes zero.

    counts, edges: a histogram, as `numpy.histogram` returns it.

    Example:
        >>> counts, edges = np.histogram([*np.linspace(0, 1, 100_000), 50.0], bins=5000)
        >>> low, high = percentile_range(counts, edges)
        >>> print(round(low, 2), round(high, 2))
        0.0 1.0
    """
    below = np.cumsum(counts) / counts.sum()
    first, last = (int(np.searchsorted(below, share)) for share in (OUTLIERS, 1 - OUTLIERS))
    return min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0)


def mse_range(counts: Array, edges: Array) -> tuple[float, float]:
    """Return a range whose 256 values have a small mean squared error, rounding and clipping together.

    The candidates for each end are `FRACTIONS` of the whole range. In turns, the best one is chosen for each end while
    the other is held, until neither changes; another pair of candidates may have a smaller error. The criterion is the
    MSE of Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, section 3.1.
    counts, edges: a histogram, as `numpy.histogram` returns it.

    Example:
        >>> counts, edges = np.histogram([*np.linspace(0, 1, 1_000_000), 3.0], bins=3000)
        >>> low, high = mse_range(counts, edges)
        >>> print(low, 0.9 < high < 1.5)
        0.0 True
    """
    held = counts > 0
    weights, values = counts[held], ((edges[:-1] + edges[1:]) / 2)[held]

    def error(low: float, high: float) -> float:
        step = (high - low) / STEPS
        if step <= 0:
            return float(weights @ np.square(values))
        rounded = low + step * np.clip(np.round((values - low) / step), 0, STEPS)
        return float(weights @ np.square(values - rounded))

    low, high = min(float(edges[:-1][held][0]), 0.0), max(float(edges[1:][held][-1]), 0.0)
    whole, before = (low, high), None
    while (low, high) != before:
        before = low, high
        high = min((whole[1] * part for part in FRACTIONS), key=lambda end: error(low, end))
        low = min((whole[0] * part for part in FRACTIONS), key=lambda end: error(end, high))
    return low, high


RULES: dict[str, Rule] = {"percentile": percentile_range, "mse": mse_range}


def activation_ranges(
    source: Path, feeds: Callable[[], Iterable[dict[str, Array]]], rule: Rule
) -> dict[str, list[dict[str, Any]]]:
    """Return a range for every activation of an ONNX model, as ONNX Runtime's `TensorQuantOverrides` takes them.

    feeds: returns the calibration inputs, one image at a time. ONNX Runtime's own calibration keeps all activations of
    all images until the last; here each image is counted before the next one runs.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class One(CalibrationDataReader):
        def __init__(self, feed: dict[str, Array]) -> None:
            self._left = [feed]

        def get_next(self) -> dict[str, Array] | None:
            return self._left.pop() if self._left else None

    options = {"num_bins": BINS, "symmetric": False}
    with TemporaryDirectory() as folder:
        augmented = str(Path(folder) / "augmented.onnx")
        method = CalibrationMethod.Percentile
        calibrator = create_calibrator(source, None, augmented, method, extra_options=options)
        for feed in feeds():
            calibrator.collect_data(One(feed))
        found = {}
        for name, (counts, edges, low, high, *_) in calibrator.collector.histogram_dict.items():
            ends = np.clip(rule(np.asarray(counts, np.float64), np.asarray(edges, np.float64)), low, high)
            smallest, largest = np.float32(min(ends[0], 0)), np.float32(max(ends[1], 0))
            found[name] = [{"rmin": smallest, "rmax": largest}]
        del calibrator  # its session holds the file
    return found
