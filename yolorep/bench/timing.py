"""Interleaved timing: one sample of every subject in turn, round after round, so that a ratio is taken within a round.

torch.utils.benchmark times one statement after the other; on a machine whose clock or load drifts, the drift between
the two statements would be read as a difference between the subjects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from mmap import PAGESIZE, mmap
from statistics import quantiles
from time import perf_counter

import torch

if sys.platform != "win32":
    from resource import RUSAGE_SELF, getrusage

WARM_UP_CALLS = 3
PROBE_PAGES = 1024
SAMPLE_SECONDS = 0.05  # a sample repeats the call for about this long, well above the clock's resolution
Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one figure for each subject and round. calls: how many calls a figure is the mean of.

    page_faults: of one call, likewise: pages of memory that the system had to supply anew. None where it does not say.
    """

    calls: int
    seconds: dict[str, list[float]]
    page_faults: dict[str, list[float]] | None = None

    def time(self, subject: str) -> Spread:
        """Seconds of one call."""
        return Spread.of(self.seconds[subject])

    def ratio(self, subject: str, reference: str) -> Spread:
        """How many times as long `subject` takes as `reference`, round by round."""
        return Spread.of([a / b for a, b in zip(self.seconds[subject], self.seconds[reference], strict=True)])


def interleave(
    subjects: Mapping[str, Call],
    rounds: int,
    device: torch.device,
    *,
    after_round: Callable[[], object] = lambda: None,
) -> Timing:
    """Time every subject once a round, A B C A B C, each sample after one call that is not timed.

    rounds: at least 2. device: where the subjects compute: events are recorded on a GPU, a clock is read elsewhere.
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
    return Timing(calls, seconds, faults if counts_page_faults() else None)


def page_faults() -> int:
    """Of this process so far, all threads together, without those that read a disk. 0 on Windows: it has no count."""
    if sys.platform == "win32":
        return 0
    return getrusage(RUSAGE_SELF).ru_minflt


@cache
def counts_page_faults() -> bool:
    """Whether the count rises when fresh memory is written. Some sandboxes have a count that stands still."""
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
