"""What the benchmark of training steps measures."""

from __future__ import annotations

import pytest
import torch

from yolorep.bench.training import DEPLOYED, JOINT, SEPARATE, STOCK, Shape, cost, forms_of
from yolorep.errors import UsageError

CPU = torch.device("cpu")


def test_cost_of_repvgg() -> None:
    shape = Shape(2, 16, 96)  # large enough for the joint step
    found = cost("repvgg", shape, "contiguous", CPU, rounds=2)
    assert set(found.timing.seconds) == {STOCK, SEPARATE, JOINT}
    assert all(len(samples) == 2 for samples in found.timing.seconds.values())
    activation = 4 * 2 * 16 * 96 * 96  # bytes
    kept = {form: round(memory.kept / activation, 1) for form, memory in found.memory.items()}
    assert kept == {STOCK: 3, SEPARATE: 4, JOINT: 3}  # x, convolution, sum; and the 1x1 convolution
    assert all(memory.peak > memory.kept - activation for memory in found.memory.values())  # x was there before
    assert set(found.latency.seconds) == {STOCK, DEPLOYED}
    dense = 16 * 16 * 9
    assert found.parameters == (dense + 16 * 16 + 6 * 16, dense + 16)


def test_a_block_without_joint_step_has_no_joint_form() -> None:
    assert JOINT not in forms_of("orepa", 8, compiled=False)
    assert JOINT not in forms_of("plain", 8, compiled=False)


@pytest.mark.parametrize("text", ["8x64", "8x64x0", "axbxc", "8x64x64x64", ""])
def test_shape_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="8x64x64"):
        Shape.of(text)
    assert str(Shape.of("8x64x32")) == "8x64x32"
