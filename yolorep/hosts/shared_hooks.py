"""Replacements for functions that both hosts have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import nn
from torch.optim import Optimizer

from yolorep import model_yaml
from yolorep.blocks.laws import MASK
from yolorep.blocks.registry import block_of
from yolorep.blocks.starts import SPLIT
from yolorep.console import say_once
from yolorep.deployment import fold_blocks_
from yolorep.errors import BlockError, HostError
from yolorep.expansion import grow_planned_, step_masks
from yolorep.host import ULTRALYTICS, Host
from yolorep.hosts.announcements import folded_line, gains_line, logger_of, masked_line
from yolorep.hosts.build_faults import building
from yolorep.hosts.fold_error import largest_error, outputs_on_noise
from yolorep.late_request import LATE, pending
from yolorep.modes import evaluating
from yolorep.policy import Policy
from yolorep.row_schema import check_evaluated
from yolorep.training.decay import decay_equivalent_kernels_, spare_gains_
from yolorep.training.gain_rate import speed_gains_
from yolorep.training.gradient_mask import mask_steps_

PREPARED = "prepared_by_yolorep"

FOR_TRAINED = (
    "blocks twin and refconv and start split build on trained kernels (rep=twin with a checkpoint, or yolorep "
    "expand); a model that is built from its YAML has silent or random branches, and refconv's kernels are random, "
    "until the weights of a checkpoint are loaded"
)
DATA_KEYS = "a data YAML: accepted is a mapping with train, val and names"


def fuse_after_deploy(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Fold all rep blocks, including the host's own, say so, then call the host's `fuse()`.

    Hosts fuse models in training mode too, with the statistics of eval mode; the blocks are folded likewise.
    """
    with evaluating(model):
        outputs = outputs_on_noise(model)
        folding = fold_blocks_(model)
        error = largest_error(outputs)
    folding.warn()
    if folding.folded and kwargs.get("verbose", True):
        foreign = len(folding.foreign)
        logger_of(model).info(folded_line(len(folding.folded) - foreign, foreign, error))
    return original(model, *args, **kwargs)


def parse_planned(original: Any, host: Host, d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Call a host's `parse_model` with the stock model that stands in for `d`, then grow the requested blocks on it."""
    with naming(d.get("yaml_file")):
        check_evaluated(d)
        if host is not ULTRALYTICS and LATE in d:
            raise HostError(f"{LATE} is for ultralytics; accepted: rep, which expands the model before the first epoch")
        plan = model_yaml.plan(d, host)
        for name in model_yaml.taken_names(d, host):
            say_once(f"{name} in this model's rows is your class; for yolorep's write {model_yaml.OURS}{name}")
        if not plan.is_rep:
            return original(d, *args, **kwargs)
        if any(_needs_trained_kernels(policy) for policy in (plan.policy, *(own for _, own in plan.rows.values()))):
            say_once(FOR_TRAINED)
        with building(d):
            layers, save = original(plan.stock, *args, **kwargs)
        grow_planned_(layers, plan)
    return layers, save


def _needs_trained_kernels(policy: Policy | None) -> bool:
    return policy is not None and (policy.start == SPLIT or block_of(policy.block).for_trained)


@contextmanager
def naming(file: Any) -> Iterator[None]:
    """Begin the message of a refusal with the name of the YAML that is refused. file: None where it is not known."""
    try:
        yield
    except (BlockError, HostError) as error:
        if file is None or str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error.__cause__


def prepared(optimizer: Optimizer, model: nn.Module) -> Optimizer:
    """Prepare a host's new optimizer for the blocks of the model, as its YAML requests; return the optimizer.

    Gains never decay. `equivalent_l2` decays equivalent kernels, `gain_lr` multiplies the learning rate of gains, and
    block `repopt` steps stock kernels by masks.
    model: as wrapped by the host (DDP, a compiled or a distilled model).

    Raises:
        BlockError: the YAML requests `equivalent_l2` or `gain_lr` for a model without such kernels or gains, or an
            optimizer has no mask.
    """
    if getattr(optimizer, PREPARED, False):  # the published YOLOv5 package has its functions under two names
        return optimizer
    setattr(optimizer, PREPARED, True)
    spare_gains_(optimizer, model)
    for module in list(model.modules()):
        yaml: Any = getattr(module, "yaml", None)
        if not isinstance(yaml, dict) or pending(yaml) is not None:
            continue
        if yaml.get(model_yaml.EQUIVALENT_L2):
            decay_equivalent_kernels_(optimizer, module)
        if yaml.get(model_yaml.GAIN_LR):
            factor = model_yaml.factor(yaml[model_yaml.GAIN_LR])
            gains = speed_gains_(optimizer, module, factor)
            logger_of(module).info(gains_line(gains, factor))
        policy = yaml.get("rep") and Policy.from_yaml(yaml["rep"])
        if policy and block_of(policy.block).law == MASK:
            masks = step_masks(module, policy)
            mask_steps_(optimizer, masks)
            logger_of(module).info(masked_line(policy.block, len(masks)))
    return optimizer


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file. what: the expected content, as in 'a data YAML: accepted is ...'.

    Raises:
        HostError: the file is not YAML, or not a mapping.
    """
    try:
        with file.open(encoding="utf-8", errors="ignore") as stream:
            content = yaml.safe_load(stream)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2020-99-99
        raise HostError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise HostError(f"{file} cannot be read: {error.strerror or error}") from None
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
