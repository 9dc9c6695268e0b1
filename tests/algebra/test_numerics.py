"""One rule for how far apart two results are: zero, NaN, infinity, empty tensors and shapes included."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from tests.helpers import run_python
from yolorep import numerics
from yolorep.numerics import channel_error, largest_difference, relative_error, tolerance

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("expected", "got", "error"),
    [
        ([1.0, 4.0], [1.0, 4.4], 0.1),
        ([1.0, -4.0], [1.0, -4.4], 0.1),
        ([0.0, 0.0], [0.0, 1e-3], 1e-3),  # of zeros, absolute
        ([0.0], [0.0], 0.0),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], INF),
        ([1.0, NAN], [1.0, 1.0], INF),
        ([1.0, 1.0], [1.0, NAN], INF),
        ([NAN], [NAN], INF),
        ([-INF, 2.0], [-INF, 2.2], 0.1),  # a mask of an attention
        ([INF], [-INF], INF),
        ([2.0], [INF], INF),
    ],
)
def test_relative_error(expected: list[float], got: list[float], error: float) -> None:
    a, b = torch.tensor(expected), torch.tensor(got)
    assert relative_error(a, b) == pytest.approx(error, rel=1e-6)
    nested = {"a": [torch.ones(3), a], "b": (3, "text")}
    assert relative_error(nested, {"a": [torch.ones(3), b], "b": (3, "text")}) == pytest.approx(error, rel=1e-6)
    if a.shape == b.shape:
        assert channel_error(a[None], b[None]) == pytest.approx(error if error < INF else INF, rel=1e-6)


def test_a_nest_with_another_number_of_tensors_is_infinitely_far() -> None:
    assert relative_error([torch.ones(2)], [torch.ones(2)] * 2) == INF


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool, torch.complex64])
def test_any_dtype_is_compared(dtype: torch.dtype) -> None:
    a = torch.tensor([0, 1]).to(dtype)
    assert relative_error(a, a.clone()) == 0.0
    assert relative_error(a, torch.tensor([1, 1]).to(dtype)) == 1.0


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_small_channel_is_judged_by_its_own_scale_on_any_axis(axis: int) -> None:
    expected = torch.full((2, 5, 6, 7), 600.0, dtype=torch.float64)
    expected.select(axis, 3).fill_(1.0)
    got = expected.clone()
    got.select(axis, 3).mul_(1.001)
    assert relative_error(expected, got) < 1e-5
    assert channel_error(expected, got) == pytest.approx(1e-3)


def test_a_channel_below_the_floor_is_judged_by_the_floor() -> None:
    expected = torch.tensor([[1000.0, 1e-9]])
    got = torch.tensor([[1000.0, 2e-9]])
    assert channel_error(expected, got) == pytest.approx(1e-9)
    assert channel_error(expected, got, floor=0.0) == pytest.approx(1.0)


def test_channels_of_zeros_and_empty_tensors_are_compared() -> None:
    assert channel_error(torch.zeros(2, 3), torch.zeros(2, 3)) == 0.0
    assert channel_error(torch.zeros(2, 3), torch.full((2, 3), 1e-3)) == pytest.approx(1e-3)
    assert channel_error(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3)) == 0.0
    assert channel_error(torch.zeros(2, 3), torch.zeros(2, 4)) == INF
    assert channel_error(torch.tensor(2.0), torch.tensor(2.2)) == pytest.approx(0.1)
    assert largest_difference(torch.zeros(0), torch.zeros(0)) == 0.0


def test_integers_have_no_tolerance() -> None:
    assert tolerance(torch.int32) == tolerance(torch.bool) == 0.0


def test_examples() -> None:
    assert doctest.testmod(numerics, extraglobs={"torch": torch}).failed == 0


SWITCHES = """
import sys, threading, torch
from yolorep.numerics import full_float32

NEW = ["cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"]

def legacy():
    def read(function):
        try:
            return function()
        except RuntimeError:
            return "refused"
    switches = (lambda: torch.backends.cuda.matmul.allow_tf32, lambda: torch.backends.cudnn.allow_tf32)
    return [read(f) for f in (*switches, torch.get_float32_matmul_precision)]

def state():
    result = legacy()
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        for name in NEW:
            backend, part = name.split(".")
            result.append(getattr(getattr(torch.backends, backend), part).fp32_precision)
    return result

def off():
    now = state()
    return now[0] is not True and now[1] is not True and not {"tf32", "bf16"} & set(map(str, now[3:]))

exec(sys.argv[1])
before = state()
first, second = threading.Event(), threading.Event()
seen = []

def other():
    first.wait()
    with full_float32():
        second.set()
        third.wait()
        seen.append(off())

third = threading.Event()
thread = threading.Thread(target=other)
thread.start()
with full_float32(), full_float32():
    seen.append(off())
    first.set()
    second.wait()
seen.append(off())  # the other thread is still inside
third.set()
thread.join()
print(seen == [True, True, True], state() == before, before[:3])
"""


@pytest.mark.parametrize(
    "setup",
    [
        "",
        "torch.set_float32_matmul_precision('high')",
        "hasattr(torch.backends.cuda.matmul, 'fp32_precision') and setattr(torch.backends, 'fp32_precision', 'tf32')",
    ],
)
def test_tf32_is_off_inside_and_as_it_was_after_overlapping_threads(setup: str) -> None:
    assert run_python(SWITCHES, setup).startswith("True True")
