"""Bounds on the operations that a training step of one block calls: launches bound small networks on a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolorep import Conv_C3
from yolorep.blocks import decay_equivalent_kernels_

# Operations that change how a tensor is seen, and launch nothing.
VIEWS = {
    "alias",
    "as_strided",
    "detach",
    "diagonal",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
}
VIEWS |= {"squeeze", "t", "transpose", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"}


class Calls(TorchDispatchMode):
    """Counts the calls that reach a device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        if name not in VIEWS:
            self.by_name[name] += 1
        return function(*args, **(kwargs or {}))


def calls_of_a_step(block: str, joint: bool | None = None) -> Counter[str]:
    """Calls of one forward and backward pass, in the layout that takes the same path on a CPU as on a GPU."""
    layer = Conv_C3(16, 16, block=block).to(memory_format=torch.channels_last).train()
    layer.joint = joint
    x = torch.randn(2, 16, 24, 24).to(memory_format=torch.channels_last)
    for _ in range(2):  # the second time, nothing is set up
        layer.zero_grad()
        x = x.detach().requires_grad_()
        with Calls() as calls:
            layer(x).sum().backward()
    return calls.by_name


# Before: joint 62, orepa 127.
BOUNDS = {
    ("plain", False): 13,
    ("repvgg", False): 27,
    ("repvgg", True): 25,
    ("qarepvgg", False): 27,
    ("orepa", None): 68,
}


@pytest.mark.parametrize(("block", "joint"), BOUNDS, ids=str)
def test_calls_of_a_step_are_bounded(block: str, joint: bool | None) -> None:
    found = calls_of_a_step(block, joint)
    assert found.total() <= BOUNDS[block, joint], found


def test_joint_step_calls_no_more_than_the_separate_form() -> None:
    assert calls_of_a_step("repvgg", True).total() <= calls_of_a_step("repvgg", False).total()


def test_decay_of_equivalent_kernels_calls_seven_operations_a_block() -> None:
    """Before: 41, and a copy from the CPU."""

    def step(blocks: int, decayed: bool) -> int:
        model = nn.Sequential(*(Conv_C3(8, 8) for _ in range(blocks)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4, foreach=True)
        if decayed:
            decay_equivalent_kernels_(optimizer, model)
        model(torch.randn(1, 8, 8, 8)).sum().backward()
        with Calls() as calls:
            optimizer.step()
        return calls.by_name.total()

    added = [step(blocks, True) - step(blocks, False) for blocks in (4, 12)]
    assert (added[1] - added[0]) / 8 <= 7, "for each block"
    assert added[0] - 4 * 7 <= 16, "once"
