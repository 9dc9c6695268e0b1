"""Expand a model in the middle of its training: the model, its moving average, the optimizer and the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from yolorep.expansion import expand
from yolorep.policy import Policy

Curve = Callable[[float], float]  # epoch → learning rate, as a factor of the first one


def expand_both_(model: nn.Module, average: nn.Module, policy: Policy, images: Sequence[Tensor] | None) -> int:
    """Expand a model and its moving average in place with the same branches; return the number of new parameters.

    images: batches of training images for the start `split`. Both compute what they did, and the parameters that they
    had stay the same objects, but for kernels that a block freezes. The average stays in eval mode, without gradients.

    Raises:
        BlockError, HostError: as `expand`.
    """
    known = {id(parameter) for parameter in model.parameters()}
    for one in (model, average):
        _expand_(one, policy, images)
    average.eval().requires_grad_(False)
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in known)


def _expand_(model: nn.Module, policy: Policy, images: Iterable[Tensor] | None) -> None:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):  # so that the next model's branches have the same random values
        expand(
            model,
            policy.block,
            identity=policy.identity,
            select=policy.select,
            start=policy.start,
            images=images,
            inplace=True,
        )


def carry_state_(old: Optimizer, new: Optimizer) -> None:
    """Give a new optimizer what an old one keeps of the parameters that both have: momentum, moments, counts."""
    kept = {id(parameter) for group in new.param_groups for parameter in group["params"]}
    for parameter, state in old.state.items():
        if id(parameter) in kept:
            new.state[parameter] = state


def restarted(curve: Curve, first: int, epochs: int) -> Curve:
    """Return the curve of a run of `epochs`, gone through once more, from the epoch `first` to the last.

    curve: depends on the epoch's share of the run alone, as those of both hosts do, linear and cosine.

    Example:
        >>> again = restarted(lambda epoch: 1 - epoch / 10, 6, 10)
        >>> [round(again(epoch), 2) for epoch in (5, 6, 8, 10)]
        [0.5, 1.0, 0.5, 0.0]
    """

    def again(epoch: float) -> float:
        return curve(epoch) if epoch < first else curve((epoch - first) * epochs / (epochs - first))

    return again
