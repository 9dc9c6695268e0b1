"""Interleaved timing: one sample of every subject in turn, round after round; ratios are computed within a round.

`torch.utils.benchmark` times one statement after the other. If the clock or the load of the machine drifts between the
two statements, the drift looks like a difference between them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from mmap import PAGESIZE, mmap
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch

from yolorep.bench.record import torch_flags

if sys.platform != "win32":
    from resource import RUSAGE_SELF, getrusage

WARM_UP_CALLS = 3
PROBE_PAGES = 1024
SAMPLE_SECONDS = 0.05  # a sample repeats the call for about this long, well above the clock's resolution
Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one value over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timing:
    """Seconds per call of each subject in each round.

    calls: number of calls that a value is the mean of. page_faults: minor page faults per call, in the same order, or
    None where the system does not count them. flags: `torch_flags()` during the measurement.
    """

    calls: int
    seconds: dict[str, list[float]]
    page_faults: dict[str, list[float]] | None = None
    flags: dict[str, Any] = field(default_factory=dict)

    def time(self, subject: str) -> Spread:
        """Return the seconds of one call."""
        return Spread.of(self.seconds[subject])

    def ratio(self, subject: str, reference: str) -> Spread:
        """Return time of `subject` / time of `reference`, computed round by round."""
        return Spread.of([a / b for a, b in zip(self.seconds[subject], self.seconds[reference], strict=True)])


def interleave(
    subjects: Mapping[str, Call],
    rounds: int,
    device: torch.device,
    *,
    after_round: Callable[[], object] = lambda: None,
) -> Timing:
    """Time every subject once per round, in the order A B C A B C; one untimed call precedes each sample.

    rounds: at least 2. device: where the subjects compute; a GPU is timed with CUDA events, a CPU with the clock.
    after_round: called after each round.
    """
    sample = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    for call in subjects.values():
        sample(call, WARM_UP_CALLS)
    fastest = min(sample(call, 1) for call in subjects.values())
    calls = max(1, round(SAMPLE_SECONDS / fastest))
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    faults: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, call in subjects.items():
            call()
            before = page_faults()
            seconds[name].append(sample(call, calls) / calls)
            faults[name].append((page_faults() - before) / calls)
        after_round()
    return Timing(calls, seconds, faults if counts_page_faults() else None, torch_flags())


def page_faults() -> int:
    """Return the minor page faults of this process so far, all threads together; 0 on Windows, which has no count."""
    if sys.platform == "win32":
        return 0
    return getrusage(RUSAGE_SELF).ru_minflt


@cache
def counts_page_faults() -> bool:
    """Return whether the count rises when new memory is written; in some sandboxes it never does."""
    before = page_faults()
    with mmap(-1, PROBE_PAGES * PAGESIZE) as fresh:
        for page in range(PROBE_PAGES):
            fresh[page * PAGESIZE] = 1
    return page_faults() > before


def _cpu_seconds(call: Call, calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        call()
    return perf_counter() - start


def _cuda_seconds(call: Call, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000  # milliseconds
