"""What a strided 1x1 convolution reads of its input, for where torch must not be given more than that."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NARROW = 16  # channels, from which on oneDNN reads its input right


def overread(layer: nn.Module | None, x: Tensor) -> bool:
    """Whether the backward pass of `layer` would read past the end of x, (batch, in, h, w).

    On a CPU torch 2.14 (oneDNN) does so, and the process dies, where the stride of a 1x1 convolution leaves rows or
    columns over at the end and x is in channels_last, with few channels, as at the first layer of a model. A compiler
    chooses that layout by itself.
    """
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.padding != (0, 0):
        return False
    if layer.in_channels >= NARROW or layer.stride == (1, 1) or x.device.type != "cpu":
        return False
    if _read(layer, x) == tuple(x.shape[2:]):
        return False
    return torch.compiler.is_compiling() or x.is_contiguous(memory_format=torch.channels_last)


def pixels_read(branch: nn.Module, x: Tensor) -> Tensor:
    """x for `branch`: up to the last pixel that it reads where x would be overread, else x as it is."""
    first = branch[0] if isinstance(branch, nn.Sequential) and len(branch) else branch
    if not overread(first, x):
        return x
    rows, cols = _read(first, x)  # type: ignore[arg-type]
    return x[..., :rows, :cols]


def _read(layer: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    """Height and width of x up to the last pixel that an unpadded 1x1 convolution reads."""
    return tuple((n - 1) // s * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True))
