"""Branches that add nothing until they are trained: how a block starts on a convolution that is trained already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.linear import Scale
from yolorep.errors import BlockError

DENSE = "dense_"


def silence_(layers: Mapping[str, nn.Module], mean: Tensor, var: Tensor) -> None:
    """Make a block compute what its convolution and batch norm alone do.

    layers: a block's branches, and the layers on its dense path, by name.
    mean, var: of the dense convolution's output, (out,) each, as its batch norm recorded them.

    Raises:
        BlockError: a branch has nothing that it could be silenced by.
    """
    for name, layer in layers.items():
        if name.startswith(DENSE):
            pass_on_(layer, mean, var)
        else:
            zero_gain_(layer)


def zero_gain_(branch: nn.Module) -> None:
    """Set the last gain of a branch to 0: gamma and beta of its batch norm, its scale, or its one convolution.

    Raises:
        BlockError: it has none.
    """
    gains = [m for m in branch.modules() if isinstance(m, (_BatchNorm, Scale))]
    gains = gains or [m for m in [branch] if isinstance(m, nn.Conv2d)]  # type: ignore[misc]
    if not gains or gains[-1].weight is None:
        raise BlockError(
            f"a branch ({type(branch).__name__}) has no gain to silence it by: "
            "a batch norm with a weight, a Scale, or itself a convolution"
        )
    nn.init.zeros_(gains[-1].weight)
    if getattr(gains[-1], "bias", None) is not None:
        nn.init.zeros_(gains[-1].bias)  # type: ignore[arg-type]


@torch.no_grad()
def pass_on_(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Make a batch norm or a scale on the dense path return what it is given.

    In training a batch norm first takes away the batch's mean and variance, and then gives back the recorded ones;
    the batch norm after the sum takes those away, so that but for eps nothing is changed there either.
    """
    if not isinstance(layer, _BatchNorm):
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
        return
    layer.running_mean.copy_(mean)  # type: ignore[union-attr]
    layer.running_var.copy_(var)  # type: ignore[union-attr]
    layer.weight.copy_((var.double() + layer.eps).sqrt())
    layer.bias.copy_(mean)
