"""Random kernels, and what they compute by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from yolorep.algebra import Kernel


def kernel(cin: int, out: int, size: Any = 3, *, bias: bool = True, **geometry: Any) -> Kernel:
    """A random kernel in float64; a number in the geometry stands for both axes."""
    pair = {key: (v, v) if isinstance(v, int) and key != "groups" else v for key, v in geometry.items()}
    height, width = (size, size) if isinstance(size, int) else size
    weight = torch.randn(out, cin // geometry.get("groups", 1), height, width, dtype=torch.float64)
    return Kernel(weight, torch.randn(out, dtype=torch.float64) * bias, **pair)


def free(*size: int, **geometry: Any) -> Kernel:
    """A channel-free kernel: one random filter for any number of channels."""
    made = kernel(1, 1, size, bias=False, **geometry)
    return Kernel(made.weight, made.bias, made.stride, made.padding, groups=0)


def apply(k: Kernel, x: Tensor) -> Tensor:
    """The map itself, by torch."""
    k = k.over(x.shape[1])
    (top, left), mode = k.padding, k.padding_mode
    x = F.pad(x, (left, left, top, top), mode="constant" if mode == "zeros" else mode)
    return F.conv2d(x, k.weight, k.bias, k.stride, dilation=k.dilation, groups=k.groups)


def image(channels: int, size: tuple[int, int] = (9, 11)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=torch.float64)


def identity() -> Kernel:
    return Kernel(torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), groups=0)
