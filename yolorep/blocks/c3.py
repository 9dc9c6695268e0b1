"""`Bottleneck` and `C3` of YOLOv5 with over-parameterized convolutions, for use with torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3, switch_
from yolorep.errors import BlockError


class Bottleneck(nn.Module):
    """YOLOv5's bottleneck with rep blocks: x + cv2(cv1(x)), or cv2(cv1(x)) without the shortcut.

    Maps (batch, c1, h, w) to (batch, c2, h, w).

    c1, c2: input and output channels. shortcut: add the input if c1 == c2. g: groups of the second convolution.
    e: hidden channels as a share of c2. k: kernel sizes; (1, 3) deploys to exactly YOLOv5's layer, (3, 3) to a heavier
    one. rep: `block`, `identity` and `se` of both convolutions.

    Raises:
        BlockError: `k` is not two odd sizes; otherwise as `Conv_C3`.

    Example:
        >>> block = Bottleneck(8, 8).eval()
        >>> block._switch_to_deploy()
        >>> [name for name, _ in block.cv2.named_children()]
        ['conv', 'act']
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        k: tuple[int, int] = (1, 3),
        **rep: Any,
    ) -> None:
        check_sizes(k)
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv_C3(c1, hidden, k[0], **rep)
        self.cv2 = Conv_C3(hidden, c2, k[1], g=g, **rep)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y

    def _switch_to_deploy(self) -> None:
        """Fold both convolutions in place. Raises FoldError as `Conv_C3._switch_to_deploy`."""
        switch_(self)


class C3(nn.Module):
    """CSP bottleneck with three convolutions: cv3([m(cv1(x)), cv2(x)]), (batch, c1, h, w) to (batch, c2, h, w).

    n: number of bottlenecks. The other arguments are `Bottleneck`'s; the convolutions of the bottlenecks have
    branches, cv1, cv2 and cv3 are plain.

    Raises:
        BlockError: as `Bottleneck`.

    Example:
        >>> C3(8, 16, n=2)(torch.rand(1, 8, 4, 4)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        k: tuple[int, int] = (1, 3),
        **rep: Any,
    ) -> None:
        check_sizes(k)
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv_C3(c1, hidden, 1, block="plain")
        self.cv2 = Conv_C3(c1, hidden, 1, block="plain")
        self.cv3 = Conv_C3(2 * hidden, c2, 1, block="plain")
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, 1.0, k, **rep) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))

    def _switch_to_deploy(self) -> None:
        """Fold every convolution, nested, in place. Raises FoldError as `Conv_C3._switch_to_deploy`."""
        switch_(self)


def check_sizes(k: Any) -> None:
    """Check the kernel sizes of a bottleneck's two convolutions.

    Raises:
        BlockError: `k` is not two odd positive integers.
    """
    pair = isinstance(k, (tuple, list)) and len(k) == 2
    if not pair or not all(isinstance(size, int) and size > 0 and size % 2 for size in k):
        raise BlockError(f"k must be two odd kernel sizes, such as (1, 3); got {k!r}")
