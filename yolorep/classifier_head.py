"""A classifier head with a single linear layer, as in the ImageNet networks of the literature."""

from __future__ import annotations

from typing import Any

from torch import nn


def pool_and_classify_(head: nn.Module) -> None:
    """Reduce ultralytics' `Classify` to global average pooling and one freshly initialized linear layer, in place.

    Maps (batch, c1, h, w) to (batch, nc). The 1x1 convolution to 1280 channels becomes the identity. The class stays,
    and with it softmax in eval mode, the dropout option and the replacement of `linear` for another number of classes.
    A pickle of the head names no class of yolorep.
    """
    layers: Any = head
    c1 = layers.conv.conv.in_channels
    layers.conv, layers.linear = nn.Identity(), nn.Linear(c1, layers.linear.out_features)
