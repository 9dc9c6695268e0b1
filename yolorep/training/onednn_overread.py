"""A guard against reads past the end of the input in the backward pass of strided 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NARROW = 16  # channels, from which on oneDNN reads its input right


def overread(layer: nn.Module | None, x: Tensor) -> bool:
    """Return whether the backward pass of `layer` would read past the end of x, (batch, in, h, w).

    On a CPU torch 2.14 (oneDNN) does so, and the process dies, if the stride of a 1x1 convolution leaves rows or
    columns over at the end and x is in channels_last with few channels, as at the first layer of a model. A compiler
    may choose that layout by itself.
    """
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.padding != (0, 0):
        return False
    if layer.in_channels >= NARROW or layer.stride == (1, 1) or x.device.type != "cpu":
        return False
    if _read(layer, x) == tuple(x.shape[2:]):
        return False
    return torch.compiler.is_compiling() or x.is_contiguous(memory_format=torch.channels_last)


def pixels_read(branch: nn.Module, x: Tensor) -> Tensor:
    """Return x cropped to the last pixel that `branch` reads if x would be overread, else x unchanged."""
    first = branch[0] if isinstance(branch, nn.Sequential) and len(branch) else branch
    if not overread(first, x):
        return x
    rows, cols = _read(first, x)  # type: ignore[arg-type]
    return x[..., :rows, :cols]


def _read(layer: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    """Return height and width of x up to the last pixel that an unpadded 1x1 convolution reads."""
    return tuple((n - 1) // s * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True))
