"""Latency of exported models, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from yolorep.quantization.graph import Array
from yolorep.telemetry import without_telemetry

ROUNDS, WARM_UP = 20, 3  # inferences of each model, timed and not


def latencies(paths: Mapping[str, Path], feed: dict[str, Array]) -> dict[str, float]:
    """Return the median time in seconds of one inference of each model.

    paths: ONNX files, run by ONNX Runtime, and OpenVINO folders, run by OpenVINO, by label; all on the CPU.
    feed: {name of the input: image}. The models take turns, so that a change of the machine's speed reaches all.
    """
    calls = {label: _session(path, feed) for label, path in paths.items()}
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(ROUNDS + WARM_UP):
        for label, call in calls.items():
            start = perf_counter()
            call()
            times[label].append(perf_counter() - start)
    return {label: median(found[WARM_UP:]) for label, found in times.items()}


def _session(path: Path, feed: dict[str, Array]) -> Callable[[], Any]:
    if path.is_dir():
        openvino = without_telemetry("openvino")
        compiled = openvino.Core().compile_model(next(path.glob("*.xml")), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        image = next(iter(feed.values()))
        return lambda: compiled(image)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)
