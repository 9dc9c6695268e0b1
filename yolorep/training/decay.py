"""RepVGG's weight decay on the equivalent kernels, in an optimizer that somebody else built and steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.training.penalty import branch_scales, kernels, penalized_blocks, penalties

Group = dict[str, Any]
OWN = ("params", "weight_decay", "param_group")  # what a group may have to itself; ultralytics labels its groups


def decay_equivalent_kernels_(optimizer: Optimizer, model: nn.Module) -> None:
    """Make `optimizer` decay the equivalent kernel of each RepVGG block of `model` instead of its kxk and 1x1 kernels.

    From then on a step is the one that the loss + weight_decay / 2 * `equivalent_l2` would give, with the weight decay
    of the kernels' group, which they leave for one without. The penalty is not in the loss that is reported, nor in a
    gradient norm that is clipped, and is scaled as the gradients are where a fused step unscales them. Whatever else
    decays (an identity's 1x1 convolution, other blocks, plain convolutions) goes on as it did. Where processes train
    together, their running statistics are averaged for it, so that they stay in step.

    Raises:
        BlockError: `model` has no RepVGG block with a 1x1 branch.
    """
    blocks = penalized_blocks(model)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    decays = [_spare_(block, optimizer, groups) for block in blocks]
    decayed = [block for block, decay in zip(blocks, decays, strict=True) if decay]
    weights = torch.tensor([decay / 2 for decay in decays if decay])

    def add_penalty(*_: Any) -> None:
        both = [kernel for block in decayed for kernel in kernels(block)]
        trained = [kernel for kernel in both if kernel.requires_grad and kernel.grad is not None]
        scale = getattr(optimizer, "grad_scale", None)  # by torch.amp.GradScaler, of gradients not unscaled yet
        if trained:
            _add_gradients_(trained, decayed, weights if scale is None else weights.to(scale.device) * scale)

    optimizer.register_step_pre_hook(add_penalty)


def _spare_(block: Conv_C3, optimizer: Optimizer, groups: dict[int, Group]) -> float:
    """Move a block's kernels to a group that does not decay; return the weight decay that they had."""
    decay = 0.0
    for kernel in kernels(block):
        group = groups.get(id(kernel))
        if group is None or not group.get("weight_decay"):
            continue
        decay = float(group["weight_decay"])
        group["params"] = [p for p in group["params"] if p is not kernel]
        spared = _without_decay(group, groups.get(id(block.bn.weight)), optimizer)
        spared["params"].append(kernel)
        groups[id(kernel)] = spared
    return decay


def _without_decay(group: Group, of_norm: Group | None, optimizer: Optimizer) -> Group:
    """The group to spare a kernel of `group` in: that of its batch norm where it is alike, else one of its own kind.

    A host's schedules and logs count its groups, so that a new one is the last resort, and the last in the list.
    """
    for candidate in (of_norm, *optimizer.param_groups[::-1]):
        if candidate is not None and not candidate["weight_decay"] and _options(candidate) == _options(group):
            return candidate
    optimizer.add_param_group({**group, "params": [], "weight_decay": 0.0})
    return optimizer.param_groups[-1]


def _options(group: Mapping[str, Any]) -> Group:
    return {key: value for key, value in group.items() if key not in OWN}


def _add_gradients_(trained: list[nn.Parameter], blocks: list[Conv_C3], weights: Tensor) -> None:
    """Add to the gradients of `trained` those of the penalties of `blocks`, weighted by `weights`, (blocks,)."""
    with torch.enable_grad():
        each = penalties(blocks, _agreed(branch_scales(blocks)))
        gradients = torch.autograd.grad(each @ weights.to(each), trained)
    for kernel, gradient in zip(trained, gradients, strict=True):
        kernel.grad.add_(gradient)  # type: ignore[union-attr]


def _agreed(scales: Tensor) -> Tensor:
    """The mean of what the processes of a distributed training have."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        scales = scales.clone()
        dist.all_reduce(scales)
        scales /= dist.get_world_size()
    return scales
