"""Replacements for functions that both hosts have."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import nn
from torch.optim import Optimizer

from yolorep import model_yaml
from yolorep.deployment import fold_blocks_
from yolorep.errors import HostError
from yolorep.expansion import grow_planned_
from yolorep.host import Host
from yolorep.modes import evaluating
from yolorep.training.decay import decay_equivalent_kernels_


def fuse_after_deploy(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Fold all rep blocks, including the host's own, then call the host's `fuse()`.

    Hosts fuse models in training mode too, with the statistics of eval mode; the blocks are folded likewise.
    """
    with evaluating(model):
        fold_blocks_(model)
    return original(model, *args, **kwargs)


def parse_planned(original: Any, host: Host, d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Call a host's `parse_model` with the stock model that stands in for `d`, then grow the requested blocks on it."""
    plan = model_yaml.plan(d, host)
    if not plan.is_rep:
        return original(d, *args, **kwargs)
    layers, save = original(plan.stock, *args, **kwargs)
    grow_planned_(layers, plan)
    return layers, save


def decayed_as_asked(optimizer: Optimizer, model: nn.Module) -> Optimizer:
    """Make a host's new optimizer decay equivalent kernels if the model's YAML requests it; return the optimizer.

    model: as wrapped by the host (DDP, a compiled or a distilled model).

    Raises:
        BlockError: the YAML requests it for a model without such kernels.
    """
    yamls = (getattr(module, "yaml", None) for module in model.modules())
    if any(isinstance(yaml, dict) and yaml.get(model_yaml.EQUIVALENT_L2) for yaml in yamls):
        decay_equivalent_kernels_(optimizer, model)
    return optimizer


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file. what: the expected content, as in 'a data YAML: accepted is ...'.

    Raises:
        HostError: the file is not YAML, or not a mapping.
    """
    try:
        with file.open(encoding="utf-8", errors="ignore") as stream:
            content = yaml.safe_load(stream)
    except yaml.YAMLError as error:
        raise HostError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise HostError(f"{file} is not {what}")
    return content


def require(module: ModuleType, *names: str, supported: str) -> None:
    """Check that `module` has the dotted names that the hooks replace.

    Raises:
        HostError: one of them is missing.
    """
    for name in names:
        try:
            attrgetter(name)(module)
        except AttributeError:
            where = getattr(module, "__file__", None) or module.__name__
            raise HostError(f"{where} has no {name}, which yolorep hooks; supported: {supported}") from None
