"""One `Conv_C3` of each kind, with what every test of them asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.helpers import assert_same, randomize_
from yolorep import Conv_C3

# name: (arguments, options); one of each kind of layer
LAYERS: dict[str, tuple[tuple, dict]] = {
    "same": ((8, 8), {}),
    "wider": ((8, 16, 3, 2), {}),
    "narrower": ((16, 8), {"identity": "average"}),
    "pointwise": ((8, 8, 1), {}),
    "grouped-dilated": ((8, 16, 5), {"g": 2, "d": 2, "identity": "interpolate"}),
    "padded": ((8, 8, 3, 1, 2), {}),
    "no-act": ((8, 8), {"act": False}),
    "se": ((8, 16), {"se": True}),
    "plain": ((8, 8), {"block": "plain"}),
}


def layer(name: str) -> Conv_C3:
    arguments, options = LAYERS[name]
    return randomize_(Conv_C3(*arguments, **options)).eval()


def image(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, 11, 9, dtype=dtype)


def folds(module: nn.Module, x: Tensor) -> nn.Module:
    """Assert that switching changes nothing that is computed; the switched module."""
    expected = module(x)
    assert module._switch_to_deploy() is None
    assert_same(expected, module(x))
    return module
