"""RepOptimizers (arXiv 2205.15242): a step of a stock kernel is the step of the sum of `csla`'s kernels.

The sum is W = dense + s * W_1x1 + d * D, with constants s and d. With the gradient G of W, each kernel has the gradient
G times its constant, and its step counts in W times the same constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from yolorep.errors import BlockError
from yolorep.training.kernel_scales import Scales
from yolorep.training.muon_step import MaskedMuon

DECOUPLED = ("AdamW",)  # weight decay is applied to the kernel, not to its gradient
CORRECTED = ("Adam", *DECOUPLED, "NAdam")  # the root is divided by its bias before eps is added
ADAPTIVE = (*CORRECTED, "RAdam", "Adamax", "RMSprop")
MUON = "MuSGD"


Masks = Mapping[Tensor, Scales]


def mask_steps_(optimizer: Optimizer, masks: Masks) -> None:
    """Make `optimizer` step the masked kernels as it would step the sum of csla's kernels.

    masks: for each kernel the scales of its sum (`blocks.csla.kernel_scales`).

    SGD is exact, with momentum, Nesterov and weight decay: the gradient is multiplied by the squared scales before
    all of them, and the decays of csla's kernels add up to the decay of their sum. AdamW, and Adam and NAdam without
    weight decay, are exact: the step is multiplied after it by the sum of the scales, with the share of eps in each
    kernel's own denominator. So is RAdam. Their weight decay joins the gradient, where it cannot be shared out: each of
    csla's kernels would be divided by its own size. Adamax, and RMSprop with momentum, differ by their eps besides,
    which training enlarges. MuSGD is exact but for the rounding of its bfloat16 iteration: the kernels are
    orthogonalized one by one (`training.muon_step`), and its SGD part is masked as SGD.

    Hosts clip the norm of all gradients before this mask. csla's gradients have another norm, so that a step that is
    clipped, by either norm, is scaled differently from csla's.

    Raises:
        BlockError: an optimizer of another kind.

    Example:
        >>> layer = torch.nn.Conv2d(1, 1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> mask_steps_(optimizer, {layer.weight: Scales(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))})
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.ones(1, 1, 1, 1)).sum().backward()
        >>> optimizer.step()
        >>> round(float(before - layer.weight), 4)
        3.0
    """
    kind = type(optimizer).__name__
    if kind == "SGD":
        squared = {parameter: scales.squared for parameter, scales in masks.items()}
        optimizer.register_step_pre_hook(lambda *_: _mask_gradients_(squared))
    elif kind in ADAPTIVE or kind == MUON:
        step = MaskedMuon(optimizer, masks) if kind == MUON else _MaskedStep(optimizer, masks, kind)
        optimizer.register_step_pre_hook(lambda *_: step.begin())
        optimizer.register_step_post_hook(lambda *_: step.finish())
    else:
        raise BlockError(f"repopt does not know the optimizer {kind}; accepted: SGD, {', '.join(ADAPTIVE)}, {MUON}")


@torch.no_grad()
def _mask_gradients_(masks: Mapping[Tensor, Tensor]) -> None:
    with_gradient = [(p.grad, mask) for p, mask in masks.items() if p.grad is not None]
    if with_gradient:
        gradients, factors = map(list, zip(*with_gradient, strict=True))
        torch._foreach_mul_(gradients, [m.to(g) for g, m in zip(gradients, factors, strict=True)])


class _MaskedStep:
    """One step of an adaptive optimizer, multiplied by the masks after it."""

    def __init__(self, optimizer: Optimizer, masks: Masks, kind: str) -> None:
        self.optimizer, self.kind = optimizer, kind
        self.once = {p: scales.once for p, scales in masks.items()}
        # A scale of 1 leaves the share of eps as it is.
        self.scaled = {p: s for p, s in masks.items() if not all(bool(((v == 0) | (v == 1)).all()) for v in s)}
        self.squared = {p: s.squared for p, s in masks.items()} if kind == "RAdam" else {}
        self.before: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Keep the kernels as they are before the step."""
        self.before = [parameter.clone() for parameter, _ in self._stepped()]

    @torch.no_grad()
    def finish(self) -> None:
        """Multiply the steps of the kernels, without the decay that is none of their steps."""
        stepped, starts = list(self._stepped()), self.before
        self.before = []
        if not stepped:
            return
        parameters = [parameter for parameter, _ in stepped]
        if self.kind in DECOUPLED:
            torch._foreach_mul_(starts, [self._kept(group) for _, group in stepped])
        steps = list(torch._foreach_sub(parameters, starts))
        torch._foreach_mul_(steps, [self._factor(p, group).to(p) for p, group in stepped])
        torch._foreach_copy_(parameters, torch._foreach_add(starts, steps))

    def _stepped(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.optimizer.param_groups:
            yield from ((p, group) for p in group["params"] if p in self.once and p.grad is not None)

    def _kept(self, group: dict[str, Any]) -> Any:
        """Return the share of a kernel that weight decay leaves: all of it where a fused step is left out."""
        found = getattr(self.optimizer, "found_inf", None)  # set by torch.amp.GradScaler around a fused step
        decay = group["lr"] * group["weight_decay"]
        return 1 - decay if found is None else 1 - decay * (1 - found)

    def _factor(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the sum over kernels of s ** 2 (root + eps) / (s root + eps), with s = 1 for the dense one."""
        state = self.optimizer.state[parameter]
        if self.kind == "RAdam" and _is_plain(state, group):
            return self.squared[parameter]
        root = self._root(state, group) if parameter in self.scaled else None
        if root is None:
            return self.once[parameter]
        eps = group["eps"]
        kernels = [value.to(root) for value in self.scaled[parameter]]
        return 1 + sum(s.square() * (root + eps) / (s * root + eps) for s in kernels)  # type: ignore[return-value]

    def _root(self, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
        """Return the root of the mean squared gradient, to which the optimizer adds eps; None where there is none."""
        if self.kind in CORRECTED:
            return (state["exp_avg_sq"] / (1 - group["betas"][1] ** _count(state))).sqrt()
        squares = state.get("exp_avg_sq", state.get("square_avg"))
        return None if squares is None else squares.sqrt()


def _is_plain(state: dict[str, Any], group: dict[str, Any]) -> bool:
    """Return whether a step of RAdam, as its first ones, is the momentum alone, divided by nothing."""
    decay, step = group["betas"][1], float(state["step"])
    longest = 2 / (1 - decay) - 1
    return longest - 2 * step * decay**step / (1 - decay**step) <= 5  # torch's own bound


def _count(state: dict[str, Any]) -> Any:
    """Return the number of steps: as a number where it is at hand, since torch stores it in float32."""
    step = state["step"]
    return float(step) if step.device.type == "cpu" else step
