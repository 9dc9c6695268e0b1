"""Hooks for the `ultralytics` package: YAML rows and policy reach `parse_model`, and `fuse` deploys first."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from yolorep import rows
from yolorep.hosts.common import fuse_after_deploy, require
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.library import find_yaml
from yolorep.surgery import grow_planned_

MODULE = "ultralytics.nn.tasks"


def attach(tasks: ModuleType) -> Hooks:
    """Hook the imported module `ultralytics.nn.tasks`.

    Raises:
        HostError: this version has no place for a hook.
    """
    require(tasks, "parse_model", "check_yaml", "BaseModel.fuse", supported="ultralytics 8.2 to 8.4")
    hooks = Hooks()
    hooks.wrap(tasks, "parse_model", _parse_model)
    hooks.wrap(tasks, "check_yaml", _check_yaml)
    hooks.wrap(tasks.BaseModel, "fuse", fuse_after_deploy)
    return hooks


def _parse_model(original: Any, d: dict[str, Any], ch: Any, *args: Any, **kwargs: Any) -> Any:
    plan = rows.plan(d, rows.ULTRALYTICS)
    if not plan.is_rep:
        return original(d, ch, *args, **kwargs)
    layers, save = original(plan.stock, ch, *args, **kwargs)
    grow_planned_(layers, plan)
    return layers, save


def _check_yaml(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    return original(find_yaml(file), *args, **kwargs)
