"""A frozen copy of a trained convolution beside a trainable one, for fine-tuning on little data.

y = BN(W * x) + BN(W_0 * x), with W_0 the trained kernel, which is stored with the model and not trained. Both batch
norms start at half of the trained one's gain, so that the block computes the same, in training mode too. The frozen
path is meant to restrain how far a small data set moves the layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from yolorep.blocks.registry import register_block
from yolorep.blocks.site import Site
from yolorep.blocks.starts import SPLIT


class FrozenConv2d(nn.Conv2d):
    """A convolution without bias whose kernel is a buffer: hosts train every parameter, also those that are frozen."""

    weight: Tensor  # type: ignore[assignment]

    def __init__(self, like: nn.Conv2d, **place: Any) -> None:
        """Make a convolution with the geometry of `like`. place: device and dtype."""
        sizes: Any = (like.kernel_size, like.stride, like.padding, like.dilation, like.groups, False, like.padding_mode)
        super().__init__(like.in_channels, like.out_channels, *sizes, **place)
        weight = self._parameters.pop("weight")
        self.register_buffer("weight", weight.detach())  # type: ignore[union-attr]


def freeze_(conv: nn.Conv2d) -> None:
    """Turn a convolution without bias into a `FrozenConv2d` in place; under the same key, its kernel is a buffer."""
    if not isinstance(conv, FrozenConv2d):
        weight = conv._parameters.pop("weight")
        conv.__class__ = FrozenConv2d
        conv.register_buffer("weight", weight.detach())  # type: ignore[union-attr]


def thaw_(conv: nn.Conv2d) -> nn.Conv2d:
    """Turn a `FrozenConv2d` into an ordinary convolution in place; return it, as any other convolution."""
    if isinstance(conv, FrozenConv2d):
        weight = conv._buffers.pop("weight")
        conv.__class__ = nn.Conv2d  # type: ignore[assignment]
        conv.weight = nn.Parameter(weight)  # type: ignore[assignment, arg-type]
    return conv


def trainable_weight(conv: nn.Conv2d) -> nn.Parameter:
    """Return the kernel of a convolution as a parameter, which shares the values of a frozen one."""
    weight: Tensor = conv.weight
    return weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)


@register_block("twin", trained_start=SPLIT)
def twin(site: Site) -> dict[str, nn.Module]:
    """A frozen copy of the trained kernel with a batch norm, meant for fine-tuning on little data."""
    norm = site.batch_norm(site.conv.out_channels)
    return {"branch_frozen": site.sequence(conv=FrozenConv2d(site.conv, **site.place), bn=norm)}
