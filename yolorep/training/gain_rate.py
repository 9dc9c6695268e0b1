"""A separate learning rate for the gains of branches, in an optimizer that a host built and steps."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.laws import DENSE_TERM
from yolorep.errors import BlockError

RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # keys of a parameter group that schedules read


def speed_gains_(optimizer: Optimizer, model: nn.Module, factor: float) -> int:
    """Multiply the learning rate of the last gain of every branch; return the number of gains.

    The gain of a branch is the weight of its last batch norm, or its learned scale. It decides how much of the output
    the branch has, and hardly moves at the rate of the kernels. The gains move to new parameter groups, which are last
    in the list and otherwise as the groups that they come from.

    Raises:
        BlockError: as `branch_gains`.

    Example:
        >>> import torch
        >>> block = Conv_C3(8, 8)
        >>> optimizer = torch.optim.SGD(block.parameters(), lr=0.01)
        >>> speed_gains_(optimizer, block, 10)
        2
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(6, 0.01), (2, 0.1)]
    """
    gains = {id(gain) for gain in branch_gains(model)}
    moved = 0
    for group in list(optimizer.param_groups):
        mine = [parameter for parameter in group["params"] if id(parameter) in gains]
        if mine:
            moved += len(mine)
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gains]
            optimizer.add_param_group(_faster(group, mine, factor))
    return moved


def branch_gains(model: nn.Module) -> list[nn.Parameter]:
    """Return the last gain of every branch of a model.

    Raises:
        BlockError: there is none that is trained.
    """
    blocks = [module for module in model.modules() if isinstance(module, Conv_C3) and not module.deployed]
    named = [item for block in blocks for item in block.gains().items()]
    gains = [gain for name, gain in named if name != DENSE_TERM and isinstance(gain, nn.Parameter)]
    if not gains:
        raise BlockError("gain_lr: no branch has a gain that is trained; accepted: blocks such as repvgg, not repopt")
    return gains


def _faster(group: dict[str, Any], parameters: list[nn.Parameter], factor: float) -> dict[str, Any]:
    return {**group, "params": parameters, **{key: factor * group[key] for key in RATES if key in group}}
