"""Hooks for other YOLO trees: yolorep folds their rep blocks before the tree fuses the model.

YOLOv7 and YOLOv5-Lite have `models.yolo.Model.fuse`. YOLOv6 has a function, `yolov6.utils.torch_utils.fuse_model`; its
scripts then ask each block to deploy itself, which does nothing for a folded block. YOLOv9 is hooked as the YOLOv5 tree
that it grew from. Without a hook, `yolorep.deploy(model)` does the same in each of them.
"""

from __future__ import annotations

import sys
from types import ModuleType

from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import fuse_after_deploy

# Every `models.yolo` that folds blocks itself has one of these names: YOLOv7, YOLOv5-Lite.
MARKS = ("IDetect", "RepVGGBlock")


def attach(module: ModuleType) -> Hooks:
    """Hook an imported `models.yolo` of YOLOv7 or YOLOv5-Lite, or YOLOv6's `torch_utils`; leave other modules alone."""
    hooks = Hooks()
    if any(hasattr(module, mark) for mark in MARKS) and hasattr(getattr(module, "Model", None), "fuse"):
        hooks.wrap(module.Model, "fuse", fuse_after_deploy)
    if module.__name__.startswith("yolov6.") and hasattr(module, "fuse_model"):
        others = [other for name, other in list(sys.modules.items()) if name.startswith("yolov6.")]
        hooks.wrap_copies(module, "fuse_model", fuse_after_deploy, others)
    return hooks
