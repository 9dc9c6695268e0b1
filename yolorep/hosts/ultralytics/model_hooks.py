"""Hooks for the models of `ultralytics`: rep rows and policies reach `parse_model`, and `fuse` deploys first."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from yolorep.host import ULTRALYTICS
from yolorep.hosts import weight_transfer
from yolorep.hosts.announcements import logger_of
from yolorep.hosts.based_yaml import with_base
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.restricted_pickle import accept_squeeze_excitation, layers
from yolorep.hosts.shared_hooks import fuse_after_deploy, naming, parse_planned, require
from yolorep.hosts.shipped import find_yaml
from yolorep.model_yaml import FC, OURS
from yolorep.stock_layers import rep_blocks

MODULE = "ultralytics.nn.tasks"


def attach(tasks: ModuleType) -> Hooks:
    """Hook the imported module `ultralytics.nn.tasks`.

    Raises:
        HostError: this version lacks a function that is hooked.
    """
    names = ("parse_model", "check_yaml", "yaml_model_load", "BaseModel.fuse", "BaseModel.is_fused", "BaseModel.load")
    require(tasks, *names, supported=ULTRALYTICS.supported)
    hooks = Hooks()
    hooks.wrap(tasks, "parse_model", _parse_model)
    hooks.wrap(tasks, "check_yaml", _check_yaml)
    for name, around in (("guess_model_task", _guess_model_task), ("yaml_model_load", _yaml_model_load)):
        hooks.wrap_copies(tasks, name, around, [sys.modules.get("ultralytics.engine.model")])
    hooks.wrap(tasks.BaseModel, "fuse", fuse_after_deploy)
    hooks.wrap(tasks.BaseModel, "is_fused", _is_fused)
    hooks.wrap(tasks.BaseModel, "load", _load)
    torch.serialization.add_safe_globals(layers())  # rep checkpoints load under ULTRALYTICS_SAFE_LOAD=1
    if hasattr(tasks, "torch_load"):
        hooks.wrap(tasks, "torch_load", _torch_load)
    return hooks


def _parse_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return parse_planned(original, ULTRALYTICS, *args, **kwargs)


def _yaml_model_load(original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    content = original(path, *args, **kwargs)
    with naming(path):
        return with_base(content, Path(find_yaml(path)), ULTRALYTICS)


def _guess_model_task(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """ultralytics tells a classifier by the name FC in its YAML, which may be written yolorep.FC."""
    head = model.get("head") if isinstance(model, dict) else None
    if head and isinstance(head[-1], list) and OURS + FC in head[-1]:
        return "classify"
    return original(model, *args, **kwargs)


def _load(original: Any, model: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
    """Keep the branches when `load` copies by keys and shapes and replaces the head's class layers by the source's."""
    blocks = {name: model.get_submodule(name) for name in rep_blocks(model)}
    source = _source(weights)
    if isinstance(source, nn.Module):
        weight_transfer.check_unfolded(source.state_dict(), model.state_dict())
        fit = weight_transfer.fitting(source, model)
        weights = weights if fit is source else fit
    result = original(model, weights, *args, **kwargs)
    weight_transfer.regrow_(model, blocks)
    told = weight_transfer.transferred(_source(weights).state_dict(), model.state_dict())
    if told and kwargs.get("verbose", args[0] if args else True):
        logger_of(model).info(told)
    return result


def _torch_load(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("weights_only"):
        accept_squeeze_excitation(file)
    return original(file, *args, **kwargs)


def _source(weights: Any) -> Any:
    """Return the model that `load` reads: `weights` itself, or the averaged model in a checkpoint's content."""
    return (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights


def _is_fused(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Return whether nothing is left to fuse, the branches of rep blocks included."""
    return original(model, *args, **kwargs) and not rep_blocks(model)


def _check_yaml(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    return original(find_yaml(file), *args, **kwargs)
