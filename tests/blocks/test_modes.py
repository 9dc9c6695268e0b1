"""Every block in the ways that hosts run it: autocast, synchronized norms, meta tensors, tracing, compilation, half."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.blocks.layers import image
from tests.helpers import assert_same, randomize_, relative_error
from yolorep import Conv_C3
from yolorep.blocks import BLOCKS

every_block = pytest.mark.parametrize("block", sorted(BLOCKS))
COMPILED = 1e-5  # the order of the sums differs


@every_block
def test_autocast_goes_through_in_its_own_dtype(block: str) -> None:
    made = Conv_C3(8, 8, 5, block=block).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(image(8).bfloat16())  # as the layer before hands it over
    assert y.dtype == torch.bfloat16


@every_block
def test_synchronized_norms_compute_the_same_and_fold(block: str) -> None:
    """In one process, in evaluation, a SyncBatchNorm is a batch norm; YOLOv5's --sync-bn converts the whole model."""
    made = randomize_(Conv_C3(8, 8, 5, block=block)).eval()
    x = image(8)
    expected = made(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(made)
    assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())
    assert_same(expected, converted(x))
    converted._switch_to_deploy()
    assert_same(expected, converted(x))


@every_block
def test_shapes_can_be_followed_without_values(block: str) -> None:
    made = Conv_C3(8, 16, 5, 2, block=block).to("meta")
    assert made(image(8).to("meta")).shape == (2, 16, 6, 5)


@every_block
def test_a_trace_computes_the_same(block: str) -> None:
    made = randomize_(Conv_C3(8, 8, 5, block=block)).eval()
    traced = torch.jit.trace(made, image(8))
    x = image(8)
    assert_same(made(x), traced(x))


@every_block
def test_compiled_block_trains_as_it_is(block: str) -> None:
    made = Conv_C3(8, 8, 5, block=block).train()
    x = image(8)
    plain = copy.deepcopy(made)
    expected = plain(x)
    expected.square().sum().backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    torch.compiler.reset()
    y = torch.compile(made, backend="aot_eager")(x)
    y.square().sum().backward()
    assert relative_error(expected, y) < COMPILED
    for name, p in made.named_parameters():
        assert relative_error(gradients[name], p.grad) < 1e-3, name


@every_block
def test_half_precision_stays_half(block: str) -> None:
    made = randomize_(Conv_C3(8, 8, 5, block=block)).eval()
    x = image(8)
    expected = made(x)
    got = made.half()(x.half())
    assert got.dtype == torch.float16
    assert relative_error(expected, got) < 2e-2
