"""Starts: the values that a block's branches have before they are trained.

silent: the branches add nothing, so that the block computes what its convolution and batch norm do.
paper: the values of a fresh block, a gain of 1 on every branch with a batch norm.
even: a gain of 1 / sqrt(n) on each of the n normalized paths, the dense one included, so that their sum has the
    variance of one path at first.
split: the branches take parts of the trained kernel (`yolorep.blocks.shares`); until they have been given images, as
    `expand` and the command line do, they are silent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.linear import KernelMap, Scale
from yolorep.errors import BlockError

DENSE = "dense_"
SPLIT = "split"
STARTS = ("silent", "even", "paper", SPLIT)


def start_(start: str, layers: Mapping[str, nn.Module], bn: _BatchNorm) -> None:
    """Set the first values of a block's branches, in place.

    start: one of `STARTS`. layers: the branches, and the layers on the dense path, by name. bn: the block's batch norm.

    Raises:
        BlockError: an unknown start, or a branch that it cannot be applied to.
    """
    if start not in STARTS:
        raise BlockError(f"start {start!r} is unknown; accepted: {', '.join(STARTS)}")
    if start in ("silent", SPLIT):
        silence_(layers, bn.running_mean, bn.running_var)
    elif start == "even":
        even_(layers, bn)


@torch.no_grad()
def even_(layers: Mapping[str, nn.Module], bn: _BatchNorm) -> None:
    """Share the variance of the sum evenly among the paths that end in a batch norm, the dense one included."""
    last = [_last_norm(layer) for name, layer in layers.items() if not name.startswith(DENSE)]
    norms = [bn, *(norm for norm in last if norm is not None)]
    for norm in norms:
        if norm.weight is not None:
            norm.weight.mul_(len(norms) ** -0.5)


def _last_norm(branch: nn.Module) -> _BatchNorm | None:
    layers = [module for module in branch.modules() if not list(module.children())]
    return layers[-1] if layers and isinstance(layers[-1], _BatchNorm) else None


def silence_(layers: Mapping[str, nn.Module], mean: Tensor | None, var: Tensor | None) -> None:
    """Make a block compute what its convolution and batch norm alone do, in place.

    layers: the branches, and the layers on the dense path, by name.
    mean, var: recorded statistics of the dense convolution's output, (out,) each; None if its batch norm keeps none.

    Raises:
        BlockError: a branch has no gain that could be set to zero, or a batch norm needs statistics that are not kept.
    """
    for name, layer in layers.items():
        if name.startswith(DENSE):
            pass_on_(layer, mean, var)
        else:
            zero_gain_(layer)


def gain_of(*layers: nn.Module) -> Tensor | None:
    """Return the last gain in `layers`: the gamma of a batch norm or a scale, (channels,). None: they have none."""
    gains = [m.weight for layer in layers for m in layer.modules() if isinstance(m, (_BatchNorm, Scale))]
    return gains[-1] if gains else None  # type: ignore[return-value]


def zero_gain_(branch: nn.Module) -> None:
    """Set the last gain of a branch to zero: gamma and beta of its batch norm, its scale, or its last kernel.

    Raises:
        BlockError: the branch has no gain.
    """
    gains = [m for m in branch.modules() if isinstance(m, (_BatchNorm, Scale))]
    gains = gains or [m for m in branch.modules() if isinstance(m, (nn.Conv2d, KernelMap))]  # type: ignore[misc]
    if not gains or gains[-1].weight is None:
        raise BlockError(
            f"a branch ({type(branch).__name__}) has no gain to silence it by: "
            "a batch norm with a weight, a Scale, or a convolution"
        )
    nn.init.zeros_(gains[-1].weight)
    if getattr(gains[-1], "bias", None) is not None:
        nn.init.zeros_(gains[-1].bias)  # type: ignore[arg-type]


@torch.no_grad()
def pass_on_(layer: nn.Module, mean: Tensor | None, var: Tensor | None) -> None:
    """Make a batch norm or a scale on the dense path the identity, in place.

    In training mode the batch norm removes the mean and variance of the batch and adds the recorded ones. The batch
    norm after the sum removes those, so that the block's output changes by no more than eps does.

    Raises:
        BlockError: `layer` is a batch norm, and there are no statistics.
    """
    if not isinstance(layer, _BatchNorm):
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
        return
    if mean is None or var is None:
        raise BlockError(
            "the batch norm keeps no statistics (track_running_stats=False), which this block needs to start from; "
            "accepted: a block without a batch norm on the dense path, such as repvgg"
        )
    layer.running_mean.copy_(mean)  # type: ignore[union-attr]
    layer.running_var.copy_(var)  # type: ignore[union-attr]
    layer.weight.copy_((var.double() + layer.eps).sqrt())
    layer.bias.copy_(mean)
