"""YOLOv7's detection heads: implicit knowledge (arXiv 2105.04206) before and after each output convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.algebra import Kernel
from yolorep.errors import FoldError
from yolorep.folding import kernel_of, to_conv
from yolorep.foreign.layers import sequence
from yolorep.precision import has_values

SIDE = 4


@dataclass(frozen=True)
class ImplicitHead:
    """Folds m(x + a) * b into one convolution in place of m.

    The implicit layers stay and become neutral, so that the head's `forward`, its `fuseforward`, which skips them,
    and its `fuse`, which folds them again, all stay correct. The auxiliary convolutions `m2` of `IAuxDetect`, for the
    loss alone, stay; `fuseforward` does not run them.
    """

    names: tuple[str, ...] = ("IDetect", "IAuxDetect")
    gone: tuple[str, ...] = ("m", "ia", "im")

    def matches(self, module: nn.Module) -> bool:
        if type(module).__name__ not in self.names or not hasattr(module, "fuseforward"):
            return False
        parts = [getattr(module, name, None) for name in self.gone]
        if not all(isinstance(part, nn.ModuleList) for part in parts):
            return False
        layers: Any = [(a.implicit, b.implicit) for a, b in zip(*parts[1:], strict=False)]  # type: ignore[arg-type]
        return any(not has_values(a) or bool((a != 0).any()) or bool((b != 1).any()) for a, b in layers)

    def folds(self, head: Any) -> list[Kernel]:
        """Return one kernel per scale. Raises FoldError if a scale does not fold."""
        scales = zip(head.ia, head.m, head.im, strict=True)
        try:
            return [kernel_of(sequence({"ia": a, "m": conv, "im": b})) for a, conv, b in scales]
        except (AttributeError, ValueError) as error:
            raise FoldError(f"it is not the head known by that name: {error}") from None

    def inputs(self, head: Any, kernels: list[Kernel]) -> Iterator[list[Tensor]]:
        """Yield one list of noise: an input per scale, then one for each auxiliary output."""
        random = torch.Generator().manual_seed(0)
        auxiliary: Any = getattr(head, "m2", ())
        channels = [kernel.in_channels for kernel in kernels] + [conv.in_channels for conv in auxiliary]
        yield [torch.randn(1, c, SIDE, SIDE, generator=random, dtype=torch.float64) for c in channels]

    def run(self, head: Any, x: list[Tensor]) -> Any:
        """Return the outputs before decoding, for which a head without a built model has no strides."""
        head.training = True
        return head(list(x))[: len(head.m)]

    def prepare(self, head: Any, kernels: list[Kernel]) -> list[nn.Conv2d]:
        return [to_conv(kernel, like=conv.weight) for kernel, conv in zip(kernels, head.m, strict=True)]

    def commit_(self, head: Any, prepared: list[nn.Conv2d]) -> None:
        for conv, folded, a, b in zip(head.m, prepared, head.ia, head.im, strict=True):
            conv.weight, conv.bias = folded.weight, folded.bias
            a.implicit.data.zero_()
            b.implicit.data.fill_(1)
        head.forward = head.fuseforward
