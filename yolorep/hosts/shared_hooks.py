"""What the hosts' hooks share."""

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
    """`model.fuse()`: rep blocks, the host's own too, are folded; then the host fuses what is left as it does.

    A host fuses a model in training mode too, with the statistics of evaluation; so are the blocks folded.
    """
    with evaluating(model):
        fold_blocks_(model)
    return original(model, *args, **kwargs)


def parse_planned(original: Any, host: Host, d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A host's `parse_model`: it builds the stock model that stands in for `d`, on which the blocks are then grown."""
    plan = model_yaml.plan(d, host)
    if not plan.is_rep:
        return original(d, *args, **kwargs)
    layers, save = original(plan.stock, *args, **kwargs)
    grow_planned_(layers, plan)
    return layers, save


def decayed_as_asked(optimizer: Optimizer, model: nn.Module) -> Optimizer:
    """A host's new optimizer, made to decay equivalent kernels where the YAML of the model says so.

    model: as the host has wrapped it (DDP, a compiled or a distilled model).

    Raises:
        BlockError: it says so of a model without such kernels.
    """
    yamls = (getattr(module, "yaml", None) for module in model.modules())
    if any(isinstance(yaml, dict) and yaml.get(model_yaml.EQUIVALENT_L2) for yaml in yamls):
        decay_equivalent_kernels_(optimizer, model)
    return optimizer


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. what: what it should be, as in 'a data YAML: accepted is ...'.

    Raises:
        HostError: it is not YAML, or no mapping.
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
    """Raises:
    HostError: `module` lacks one of the dotted names that the hooks replace.
    """
    for name in names:
        try:
            attrgetter(name)(module)
        except AttributeError:
            where = getattr(module, "__file__", None) or module.__name__
            raise HostError(f"{where} has no {name}, which yolorep hooks; supported: {supported}") from None
