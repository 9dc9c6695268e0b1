"""Hooks for the models of `ultralytics`: rep rows and policies reach `parse_model`, and `fuse` deploys first."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

from yolorep.host import ULTRALYTICS
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
        HostError: this version lacks a function that is hooked.
    """
    require(tasks, "parse_model", "check_yaml", "BaseModel.fuse", "BaseModel.load", supported=ULTRALYTICS.supported)
    hooks = Hooks()
    hooks.wrap(tasks, "parse_model", _parse_model)
    hooks.wrap(tasks, "check_yaml", _check_yaml)
    hooks.wrap(tasks.BaseModel, "fuse", fuse_after_deploy)
    hooks.wrap(tasks.BaseModel, "load", _load)
    torch.serialization.add_safe_globals(layers())  # rep checkpoints load under ULTRALYTICS_SAFE_LOAD=1
    return hooks


def _parse_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return parse_planned(original, ULTRALYTICS, *args, **kwargs)


def _load(original: Any, model: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
    """Keep the branches when `load` copies by keys and shapes and replaces the head's class layers by the source's."""
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
