"""Weight decay of rep blocks, for an optimizer that a host built and steps: none on gains, the equivalent kernel's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from yolorep.algebra import centre
from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.linear import Scale
from yolorep.training.penalty import centre_shares, kernels, penalized_blocks

Group = dict[str, Any]
OWN = ("params", "weight_decay", "param_group")  # keys in which groups that are otherwise alike may differ


def decay_equivalent_kernels_(optimizer: Optimizer, model: nn.Module) -> None:
    """Make `optimizer` decay the equivalent kernel of each RepVGG block of `model` instead of its kxk and 1x1 kernels.

    Each step then minimizes loss + weight_decay / 2 * `equivalent_l2`, with the weight decay of the kernels' former
    group; the kernels move to a group without. The gradient of the penalty is added before each step, in closed
    form and on the parameters' device. It is neither in the reported loss nor in a gradient norm that is clipped, and
    it is scaled like the gradients where a fused step unscales them. All other parameters decay as before. Where
    processes train together, the scales of the batch norms are averaged over them.

    Raises:
        BlockError: `model` has no RepVGG block with a 1x1 branch.

    Example:
        >>> from yolorep import Conv_C3
        >>> block = Conv_C3(4, 4)
        >>> optimizer = torch.optim.SGD(block.parameters(), lr=0.1, weight_decay=5e-4)
        >>> decay_equivalent_kernels_(optimizer, block)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.0005, 0.0]
    """
    blocks = penalized_blocks(model)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    decays = [_spare_(block, optimizer, groups) for block in blocks]
    decayed = [(block, decay) for block, decay in zip(blocks, decays, strict=True) if decay]

    def add_penalty(*_: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # set by torch.amp.GradScaler for gradients not unscaled yet
        for decay in sorted({decay for _, decay in decayed}):
            _add_gradients_([block for block, own in decayed if own == decay], decay, scale)

    optimizer.register_step_pre_hook(add_penalty)


def spare_gains_(optimizer: Optimizer, model: nn.Module) -> None:
    """Exempt the learned scales of blocks from weight decay, as hosts exempt the weights of batch norms.

    A host tells kernels from batch norms by type or by number of axes, and takes a scale for a kernel.

    Example:
        >>> from yolorep import Conv_C3
        >>> block = Conv_C3(4, 4, block="orepa")
        >>> optimizer = torch.optim.SGD(block.parameters(), lr=0.1, weight_decay=5e-4)
        >>> spare_gains_(optimizer, block)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(10, 0.0005), (6, 0.0)]
    """
    gains = [m.weight for m in model.modules() if isinstance(m, Scale)]
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    norms = [groups.get(id(m.weight)) for m in model.modules() if isinstance(m, _BatchNorm)]
    for gain in gains:
        group = groups.get(id(gain))
        if group is not None and group.get("weight_decay"):
            _move_(gain, group, next((norm for norm in norms if norm is not None), None), optimizer)


def _move_(parameter: nn.Parameter, group: Group, of_norm: Group | None, optimizer: Optimizer) -> Group:
    """Move a parameter from `group` to one without weight decay, and return that."""
    group["params"] = [p for p in group["params"] if p is not parameter]
    spared = _without_decay(group, of_norm, optimizer)
    spared["params"].append(parameter)
    return spared


def _spare_(block: Conv_C3, optimizer: Optimizer, groups: dict[int, Group]) -> float:
    """Move a block's kernels to a group that does not decay; return the weight decay that they had."""
    decay = 0.0
    for kernel in kernels(block):
        group = groups.get(id(kernel))
        if group is None or not group.get("weight_decay"):
            continue
        decay = float(group["weight_decay"])
        groups[id(kernel)] = _move_(kernel, group, groups.get(id(block.bn.weight)), optimizer)
    return decay


def _without_decay(group: Group, of_norm: Group | None, optimizer: Optimizer) -> Group:
    """Return the group that a kernel of `group` moves to: its batch norm's group if the two are alike, else a new one.

    A host's schedules and logs count its groups, so that a new one is the last resort, and the last in the list.
    """
    for candidate in (of_norm, *optimizer.param_groups[::-1]):
        if candidate is not None and not candidate["weight_decay"] and _options(candidate) == _options(group):
            return candidate
    optimizer.add_param_group({**group, "params": [], "weight_decay": 0.0})
    return optimizer.param_groups[-1]


def _options(group: Mapping[str, Any]) -> Group:
    return {key: value for key, value in group.items() if key not in OWN}


@torch.no_grad()
def _add_gradients_(blocks: list[Conv_C3], decay: float, scale: Tensor | None) -> None:
    """Add to the gradients of the blocks' kernels the gradient of decay / 2 * penalty, times `scale` if there is one.

    With t = a c + b k (see `centre_shares`) the gradient is decay * kxk off the centre, decay * a t at the centre, and
    decay * b t for the 1x1 kernel. A frozen kernel, or one without a gradient, has no step and is left alone.
    """
    whole: list[tuple[Tensor, Tensor]] = []  # (gradient, kernel)
    for block, (a, b) in zip(blocks, centre_shares(blocks), strict=True):
        dense, small = kernels(block)
        middle = centre(dense)
        together = torch.addcmul(a * middle, b, small)
        together = together * decay if scale is None else together * (scale * decay)
        if dense.requires_grad and dense.grad is not None:
            whole.append((dense.grad, dense))
            centre(dense.grad).addcmul_(a, together)
        if small.requires_grad and small.grad is not None:
            small.grad.addcmul_(b, together)
    if not whole:
        return
    gradients, values = map(list, zip(*whole, strict=True))
    decayed = torch._foreach_mul(values, decay if scale is None else scale * decay)
    for value in decayed:
        centre(value).zero_()
    torch._foreach_add_(gradients, decayed)
