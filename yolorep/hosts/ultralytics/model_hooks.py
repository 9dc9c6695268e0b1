"""Hooks for the `ultralytics` package: YAML rows and policy reach `parse_model`, and `fuse` deploys first."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

from yolorep import model_yaml
from yolorep.hosts import weight_transfer
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.restricted_pickle import layers
from yolorep.hosts.shared_hooks import fuse_after_deploy, parse_planned, require
from yolorep.hosts.shipped import find_yaml
from yolorep.stock_layers import rep_blocks

MODULE = "ultralytics.nn.tasks"


def attach(tasks: ModuleType) -> Hooks:
    """Hook the imported module `ultralytics.nn.tasks`.

    Raises:
        HostError: this version has no place for a hook.
    """
    require(tasks, "parse_model", "check_yaml", "BaseModel.fuse", "BaseModel.load", supported="ultralytics 8.2 to 8.4")
    hooks = Hooks()
    hooks.wrap(tasks, "parse_model", _parse_model)
    hooks.wrap(tasks, "check_yaml", _check_yaml)
    hooks.wrap(tasks.BaseModel, "fuse", fuse_after_deploy)
    hooks.wrap(tasks.BaseModel, "load", _load)
    torch.serialization.add_safe_globals(layers())  # rep checkpoints load under ULTRALYTICS_SAFE_LOAD=1
    return hooks


def _parse_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return parse_planned(original, model_yaml.ULTRALYTICS, *args, **kwargs)


def _load(original: Any, model: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
    """`load` goes by keys and shapes, and puts the source's class layers in the place of the head's, as they are."""
    blocks = {name: model.get_submodule(name) for name in rep_blocks(model)}
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    if isinstance(source, nn.Module):
        fit = weight_transfer.fitting(source, model)
        weights = weights if fit is source else fit
    result = original(model, weights, *args, **kwargs)
    weight_transfer.regrow_(model, blocks)
    return result


def _check_yaml(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    return original(find_yaml(file), *args, **kwargs)
