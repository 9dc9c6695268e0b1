"""The constants of the kernels that `csla` adds up."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scales(NamedTuple):
    """Constants of the kernels beside the dense one, at the taps where they have a value; 0 elsewhere.

    small: of the 1x1 kernel. diagonal: of the identity. Both have the shape of the stock kernel, and no negative value.
    """

    small: Tensor
    diagonal: Tensor

    @property
    def squared(self) -> Tensor:
        """The mask on a gradient: each constant counts twice, in the gradient and in the sum."""
        return 1 + self.small.square() + self.diagonal.square()

    @property
    def once(self) -> Tensor:
        """The mask on the step of an optimizer that divides gradients by their size."""
        return 1 + self.small + self.diagonal
