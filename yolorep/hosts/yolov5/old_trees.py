"""Make YOLOv5 trees from v5.0 to v6.1 run on the torch and numpy of today."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch.overrides import TorchFunctionMode

from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import read_yaml

SPLITS = ("train", "val", "test")


def register() -> None:
    """Repair the loss, and torch's export to ONNX, as they are imported."""
    wrapt.register_post_import_hook(_repair_loss, "utils.loss")
    wrapt.register_post_import_hook(_repair_export, "torch.onnx")


def reads_data_itself(tree: Path) -> bool:
    """Whether the scripts open a data YAML themselves and know no `path:`, as before v6.0."""
    return (tree / "utils" / "google_utils.py").is_file()


def with_absolute_paths(data: Path, folder: Path) -> Path:
    """Write a copy of a data YAML to `folder` in which images have absolute paths; return the copy's path.

    Relative paths are below `path:`, or beside the YAML where there is none.
    """
    import yaml

    content = read_yaml(data, "a data YAML: accepted is a mapping with train, val and names")
    root = data.resolve().parent / str(content.pop("path", None) or "")
    for split in SPLITS:
        if content.get(split):
            listed = isinstance(content[split], list)
            paths = [str(root / path) for path in (content[split] if listed else [content[split]])]
            content[split] = paths if listed else paths[0]
    if isinstance(content.get("names"), dict):
        content["names"] = list(content["names"].values())
    content.setdefault("nc", len(content.get("names") or ()))
    copy = folder / data.name
    copy.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return copy


def _repair_loss(loss: ModuleType) -> None:
    original = getattr(getattr(loss, "ComputeLoss", None), "build_targets", None)
    if original is not None and "clamp_(0, gain[" in inspect.getsource(original):
        Hooks().wrap(loss.ComputeLoss, "build_targets", _build_targets)


def _repair_export(onnx: ModuleType) -> None:
    Hooks().wrap(onnx, "export", _export)


def _export(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Export by TorchScript, which the trees are written for, unless the caller says otherwise.

    Since torch 2.9 the default is another exporter, which takes no `dynamic_axes` and needs onnxscript.
    """
    kwargs.setdefault("dynamo", False)
    return original(*args, **kwargs)


def _build_targets(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _IntegerClamp():
        return original(*args, **kwargs)


class _IntegerClamp(TorchFunctionMode):
    """Let `Tensor.clamp_` of an integer tensor take float bounds, as torch did before 1.10."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.clamp_ and not args[0].is_floating_point():
            func = partial(func)
            args = (args[0], *(int(bound) for bound in args[1:]))
        return func(*args, **(kwargs or {}))
