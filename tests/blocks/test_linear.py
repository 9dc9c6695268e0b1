"""The linear layers that torch lacks, against the torch functions that define them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import assert_same, randomize_
from yolorep import BlockError, fold
from yolorep.blocks import MAPS, BNPad2d, ChannelMap, Sum

CHANNELS = [(12, 12), (12, 24), (24, 12), (12, 18), (18, 12), (7, 5), (5, 7), (3, 64), (64, 3), (1, 4), (4, 1)]


def resampled(x: Tensor, channels: int, mode: str) -> Tensor:
    """The channel axis of x, (batch, channels, height, width), resampled by torch as a signal of one dimension."""
    signal = x.permute(0, 2, 3, 1).flatten(0, 2)[:, None]
    if mode == "average":
        signal = F.adaptive_avg_pool1d(signal, channels)
    elif mode == "select":
        signal = F.interpolate(signal, size=channels, mode="nearest-exact")
    else:
        signal = F.interpolate(signal, size=channels, mode="linear", align_corners=False)
    return signal.reshape(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("mode", MAPS)
@pytest.mark.parametrize(("c1", "c2"), CHANNELS)
def test_channel_map_resamples_the_channel_axis(c1: int, c2: int, mode: str) -> None:
    x = torch.randn(2, c1, 5, 4)
    assert_same(resampled(x, c2, mode), ChannelMap(c1, c2, mode)(x))


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("mode", MAPS)
@pytest.mark.parametrize(("c1", "c2"), [(12, 12), (12, 24), (24, 12)])
def test_channel_map_stays_within_each_group(c1: int, c2: int, mode: str, stride: int | tuple[int, int]) -> None:
    made = ChannelMap(c1, c2, mode, stride=stride, groups=3).double()
    x = torch.randn(2, c1, 7, 6, dtype=torch.float64)
    height, width = (stride, stride) if isinstance(stride, int) else stride
    seen = x[..., ::height, ::width]
    expected = torch.cat([resampled(part, c2 // 3, mode) for part in seen.chunk(3, 1)], 1)
    # Its weight is a constant in float32, whatever it is cast to.
    assert (expected - made(x)).abs().max() < 1e-6
    assert_same(made(x), fold(made)(x))


@pytest.mark.parametrize("mode", MAPS)
def test_channel_map_between_equal_channels_is_the_identity(mode: str) -> None:
    x = torch.randn(2, 6, 5, 4)
    assert torch.equal(ChannelMap(6, 6, mode, groups=2)(x), x)


def test_channel_map_learns_and_stores_nothing() -> None:
    made = ChannelMap(6, 4, "average")
    assert not list(made.parameters())
    assert not made.state_dict()


def test_channel_map_refuses_an_unknown_mode() -> None:
    with pytest.raises(BlockError, match="'mean' is unknown; accepted: average, select, interpolate"):
        ChannelMap(6, 4, "mean")


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_bn_pad_pads_with_its_own_zero(padding: int) -> None:
    made = randomize_(BNPad2d(nn.BatchNorm2d(6), padding)).double().eval()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    assert_same(made.bn(F.pad(x, (padding,) * 4)), made(x))


def test_bn_pad_normalizes_by_the_batch_in_training() -> None:
    made = randomize_(BNPad2d(nn.BatchNorm2d(6), 1)).double().train()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    inner = F.batch_norm(x, None, None, made.bn.weight, made.bn.bias, True, eps=made.bn.eps)
    assert_same(inner, made(x)[..., 1:-1, 1:-1])


def test_bn_pad_border_is_what_a_bias_free_convolution_makes_of_zero() -> None:
    """So that padding the input of a 1x1 convolution and padding here are one and the same."""
    conv, norm = nn.Conv2d(3, 6, 1, bias=False), randomize_(BNPad2d(nn.BatchNorm2d(6), 2)).eval()
    x = torch.randn(2, 3, 5, 4)
    assert_same(norm.bn(conv(F.pad(x, (2, 2, 2, 2)))), norm(conv(x)))


def test_sum_adds_its_branches() -> None:
    made = Sum({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1)})
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(made(x), made["a"](x) + made["b"](x))
    assert [name for name, _ in made.named_children()] == ["a", "b"]
