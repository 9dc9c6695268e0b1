"""`stock_pair`: a convolution without bias and a batch norm that compute what a folded kernel does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import assert_same, randomize_
from yolorep import Conv_C3
from yolorep.stock_norm import stock_pair


@pytest.mark.parametrize("inference", [False, True])
def test_stock_pair_computes_the_same_and_can_be_trained(inference: bool) -> None:
    block = randomize_(Conv_C3(6, 8, act=False)).eval()
    with torch.inference_mode(inference):
        layer = nn.Sequential(*stock_pair(block.linear_kernel(), block.conv.weight, block.bn))
    assert layer[0].bias is None
    assert not any(t.is_inference() for t in (*layer.parameters(), *layer.buffers()))
    x = torch.randn(2, 6, 9, 7)
    assert_same(block(x), layer(x))
    layer.train()(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()


@pytest.mark.parametrize("norm", ["bn", "branch_1x1.bn", "branch_identity.bn"])
@pytest.mark.parametrize("block", ["repvgg", "qarepvgg", "mobileone"])
def test_a_variance_that_overflowed_silences_its_channel_alone(block: str, norm: str) -> None:
    """YOLOv5 stores float16, where a variance above 65504 is infinite, and a batch norm then gives its bias."""
    made = randomize_(Conv_C3(6, 8, act=False, block=block)).eval()
    overflowed = [m for name, m in made.named_modules() if name.endswith(norm)] or [made.bn]
    for layer in overflowed:
        layer.running_var[2] = float("inf")
    layer = nn.Sequential(*stock_pair(made.linear_kernel(), made.conv.weight, made.bn))
    x = torch.randn(2, 6, 9, 7)
    assert bool(torch.isfinite(made(x)).all())
    assert_same(made(x), layer(x))
