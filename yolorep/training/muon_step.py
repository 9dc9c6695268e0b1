"""ultralytics' MuSGD on a stock kernel as it would step the kernels whose sum that is."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from yolorep.algebra import centre
from yolorep.errors import BlockError
from yolorep.training.kernel_scales import Scales


class MaskedMuon:
    """Steps the masked kernels instead of the optimizer, on the optimizer's own state.

    MuSGD adds two steps: the momentum, orthogonalized, and that of SGD. To orthogonalize a sum is not to sum what is
    orthogonalized, so that no factor on the optimizer's step will do. The momenta of the kernels are the momentum of
    their sum times their scales, and are orthogonalized one by one.
    """

    def __init__(self, optimizer: Optimizer, masks: Mapping[Tensor, Scales]) -> None:
        self.optimizer = optimizer
        self.kernels = {parameter: kernels_of(scales) for parameter, scales in masks.items()}
        self.squared = {parameter: scales.squared for parameter, scales in masks.items()}
        self.gradients: dict[Tensor, Tensor] = {}
        self.update: Any = getattr(sys.modules[type(optimizer).__module__], "muon_update", None)
        if self.update is None:
            where = type(optimizer).__module__
            raise BlockError(f"repopt needs the function muon_update of {where}, which has none; accepted: its 8.4")
        self.takes_lists = "list" in str(inspect.signature(self.update).parameters["grad"].annotation)

    def begin(self) -> None:
        """Take the gradients of the masked kernels, so that the optimizer leaves these alone."""
        self.gradients = {p: p.grad for p in self.kernels if p.grad is not None}
        for parameter in self.gradients:
            parameter.grad = None

    @torch.no_grad()
    def finish(self) -> None:
        """Return the gradients, and step."""
        for parameter, gradient in self.gradients.items():
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            parameters = [p for p in group["params"] if p in self.gradients]
            if parameters and group["use_muon"]:
                self._add_muon_(parameters, group)
            for parameter in parameters:
                self._add_sgd_(parameter, group)
        self.gradients = {}

    def _add_muon_(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta, momenta = group["momentum"], []
        for parameter in parameters:
            gradient, buffer = self.gradients[parameter], self._buffer(parameter, "momentum_buffer")
            buffer.mul_(beta).add_(gradient, alpha=1 - beta)
            momenta.append(buffer * beta + gradient * (1 - beta) if group["nesterov"] else buffer)
        pairs = list(zip(parameters, momenta, strict=True))
        pieces = [piece for p, whole in pairs for piece in (whole, *(k.part(whole) for k in self.kernels[p]))]
        steps = iter(self._orthogonal(pieces))
        for parameter in parameters:
            total = next(steps).clone()
            for kernel in self.kernels[parameter]:
                kernel.add_(next(steps), total)
            parameter.add_(total, alpha=-group["lr"] * self.optimizer.muon)  # type: ignore[attr-defined]

    def _orthogonal(self, momenta: list[Tensor]) -> list[Tensor]:
        """Return each momentum orthogonalized; with a coefficient of 0, the host's function does nothing else."""
        fresh = [torch.zeros_like(momentum) for momentum in momenta]
        if self.takes_lists:
            return self.update(momenta, fresh, beta=0.0, nesterov=False)
        return [self.update(m, zeros, beta=0.0, nesterov=False) for m, zeros in zip(momenta, fresh, strict=True)]

    def _add_sgd_(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = self.gradients[parameter] * self.squared[parameter].to(parameter)
        gradient.add_(parameter, alpha=group["weight_decay"])
        name = "momentum_buffer_SGD" if group["use_muon"] else "momentum_buffer"
        buffer = self._buffer(parameter, name).mul_(group["momentum"]).add_(gradient)
        step = gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        share = self.optimizer.sgd if group["use_muon"] else 1.0  # type: ignore[attr-defined]
        parameter.add_(step, alpha=-group["lr"] * share)

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        state = self.optimizer.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


class Kernel(NamedTuple):
    """A kernel beside the dense one. scale: (out, in // groups, 1, 1). column: it has one value for each output."""

    scale: Tensor
    column: bool

    def part(self, whole: Tensor) -> Tensor:
        """Return its gradient, from that of the sum."""
        part = centre(whole) * self.scale.to(whole)
        return part.sum(1, keepdim=True) if self.column else part

    def add_(self, step: Tensor, total: Tensor) -> None:
        """Add its step to that of the sum."""
        centre(total).addcmul_(self.scale.to(total), step.expand_as(self.scale))


def kernels_of(scales: Scales) -> list[Kernel]:
    """Return the kernels beside the dense one."""
    found = (Kernel(centre(scale), column) for scale, column in zip(scales, (False, True), strict=True))
    return [kernel for kernel in found if bool(kernel.scale.any())]
