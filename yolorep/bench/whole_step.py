"""Training steps of whole models: a step without the host's loss, which all models have alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from yolorep.bench.timing import Timing, interleave
from yolorep.bench.training import kept_bytes
from yolorep.hosts.shared_hooks import prepared


def time_steps(
    models: Mapping[str, nn.Module],
    x: Tensor,
    rounds: int,
    autocast: torch.dtype | None = None,
    after_round: Callable[[], object] = lambda: None,
) -> tuple[Timing, dict[str, int]]:
    """Time forward, backward and a step of SGD of several models, interleaved, and measure the activations they keep.

    models: in training mode, on the device of `x`. x: (batch, channels, height, width). autocast: dtype, or None.
    Returns the timing and the bytes that the forward pass of each model keeps for the backward pass.
    """
    forwards = {name: _forward(model, x, autocast) for name, model in models.items()}
    kept = {name: kept_bytes(forward) for name, forward in forwards.items()}
    steps = {name: _step(model, forwards[name]) for name, model in models.items()}
    return interleave(steps, rounds, x.device, after_round=after_round), kept


def _forward(model: nn.Module, x: Tensor, autocast: torch.dtype | None) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            outputs = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor) and leaf.requires_grad]
            return torch.stack([output.float().square().mean() for output in outputs]).sum()

    return forward


def _step(model: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = prepared(torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, nesterov=True), model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()
        optimizer.step()

    return step
