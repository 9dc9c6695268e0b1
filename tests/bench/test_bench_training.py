"""The benchmark of training steps: what it measures, and what it says to wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.processes import run
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


RUNNER = "import runpy; runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "nonesuch"], "device 'nonesuch' is not here; accepted: cpu"),
        (["--device", "cuda:99"], "device 'cuda:99' is not here"),
        (["--device", "cpu", "--rounds", "1"], "accepted: at least 2 rounds"),
        (["--device", "cpu", "--threads", "-1"], "accepted: at least 2 rounds, and batch, size and threads of"),
        (["--device", "cpu", "--out", "file/below"], "file/below cannot be written to"),
        (["nonesuch", "--device", "cpu"], "block 'nonesuch' is unknown"),
    ],
)
def test_benchmark_says_what_is_wrong(arguments: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    printed = run(RUNNER, "training", *arguments, "--shapes", "1x8x8", cwd=tmp_path, code=1)
    assert "Traceback" not in printed
    assert says in printed.strip().splitlines()[-1]
