"""Hooks for a YOLOv5 tree (`models.yolo`) and for the published package (`yolov5.models.yolo`)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from yolorep import rows
from yolorep.hosts.common import fuse_after_deploy, require
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.library import find_yaml
from yolorep.surgery import grow_planned_, is_stock_conv

MODULES = ("models.yolo", "yolov5.models.yolo")


def attach(yolo: ModuleType) -> Hooks:
    """Hook an imported `models.yolo`. A module of that name from another project, without `parse_model`, is left alone.

    Raises:
        HostError: it is a YOLOv5 tree of a shape that the hooks do not know.
    """
    hooks = Hooks()
    if not hasattr(yolo, "parse_model"):
        return hooks
    base = "BaseModel" if hasattr(yolo, "BaseModel") else "Model"
    require(yolo, "parse_model", "check_yaml", "Conv", f"{base}.fuse", supported="YOLOv5 v6.2, v7.0 and master, yolov5 7.0")
    hooks.wrap(yolo, "parse_model", _parse_model)
    hooks.wrap(getattr(yolo, base), "fuse", _fuse)
    return hooks


def _parse_model(original: Any, d: dict[str, Any], ch: list[int]) -> Any:
    plan = rows.plan(d, rows.YOLOV5)
    if not plan.is_rep:
        return original(d, ch)
    layers, save = original(plan.stock, ch)
    grow_planned_(layers, plan)
    return layers, save


def _fuse(original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return fuse_after_deploy(original, model, *args, **kwargs)
