"""`calibrated`: a convolution without bias and a batch norm that compute what a folded kernel does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import assert_same, randomize_
from yolorep import Conv_C3
from yolorep.calibration import calibrated
from yolorep.fold import to_conv


@pytest.mark.parametrize("inference", [False, True])
def test_calibrated_computes_the_same_and_can_be_trained(inference: bool) -> None:
    block = randomize_(Conv_C3(6, 8, act=False)).eval()
    with torch.inference_mode(inference):
        kernel, norm = calibrated(block.linear_kernel(), block.bn)
        layer = nn.Sequential(to_conv(kernel, like=block.conv.weight), norm)
    layer[0].bias = None
    assert not any(t.is_inference() for t in (*layer.parameters(), *layer.buffers()))
    x = torch.randn(2, 6, 9, 7)
    assert_same(block(x), layer(x))
    layer.train()(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
