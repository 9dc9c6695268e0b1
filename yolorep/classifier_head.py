"""A classifier's head of one linear layer, as the ImageNet networks of the literature have it."""

from __future__ import annotations

from typing import Any

from torch import nn


def pool_and_classify_(head: nn.Module) -> None:
    """Reduce ultralytics' `Classify` to global average pooling and one linear layer, freshly initialized, in place.

    (batch, c1, h, w) to (batch, nc). Its 1x1 convolution to 1280 channels becomes the identity. The class stays, and
    with it softmax outside training, the dropout option and a new `linear` for another number of classes; a pickle of
    it names nothing of yolorep.
    """
    layers: Any = head
    c1 = layers.conv.conv.in_channels
    layers.conv, layers.linear = nn.Identity(), nn.Linear(c1, layers.linear.out_features)
