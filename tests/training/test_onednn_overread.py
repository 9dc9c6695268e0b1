"""Strided 1x1 branches on an input that torch would read past the end of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yolorep.blocks import Conv_C3
from yolorep.training import joint

LAST = torch.channels_last


def pointwise(block: Conv_C3) -> list[nn.Conv2d]:
    found = (m for _, branch in block.branches() for m in branch.modules())
    return [m for m in found if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)]


@pytest.mark.parametrize("name", ["repvgg", "mobileone", "qarepvgg"])
@pytest.mark.parametrize("worth", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "layout", "read"),
    [(16, 2, LAST, 15), (17, 2, LAST, 17), (16, 3, LAST, 16), (16, 2, torch.contiguous_format, 16)],
)
def test_strided_1x1_reads_no_further_than_its_last_pixel(
    name: str,
    worth: bool,
    size: int,
    stride: int,
    layout: torch.memory_format,
    read: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("yolorep.blocks.laws.pays", lambda x: worth)
    torch.manual_seed(0)
    block = Conv_C3(3, 8, s=stride, block=name, identity="conv")
    x = torch.rand(2, 3, size, size).to(memory_format=layout)
    given, convolve = set(), torch.nn.functional.conv2d

    def note(x: torch.Tensor, weight: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if weight.shape[2:] == (1, 1):
            given.add(tuple(x.shape[2:]))
        return convolve(x, weight, *args, **kwargs)

    monkeypatch.setattr("torch.nn.functional.conv2d", note)
    assert pointwise(block)
    y = block(x)
    assert given == {(read, read)}
    monkeypatch.setattr("yolorep.blocks.laws.pixels_read", lambda branch, x: x)
    block.joint = False
    assert torch.allclose(y, block(x), atol=1e-5)


def test_joint_step_leaves_what_would_be_overread_to_the_separate_form() -> None:
    block = Conv_C3(3, 8, s=2)
    branches = [branch for _, branch in block.branches()]
    x = torch.rand(2, 3, 16, 16)
    assert joint.joint_sum(block.conv, block.bn, branches, x) is not None
    assert joint.joint_sum(block.conv, block.bn, branches, x.to(memory_format=LAST)) is None
