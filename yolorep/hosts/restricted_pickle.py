"""Unpickle the checkpoints of both hosts without giving the file the run of the machine.

A pickle calls any function that it names. Here it may name the layers of the hosts, torch, torchvision and yolorep,
and the plain values that the hosts store beside them; any other name is refused before it is imported.
"""

from __future__ import annotations

import pickle
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from yolorep import plugins
from yolorep.errors import CheckpointError
from yolorep.host import HOSTS

# Packages whose layers (classes derived from nn.Module) are accepted.
LAYERS = ("torch", "torchvision", "yolorep", *(package for host in HOSTS for package in host.packages))
# Layers among them that open files when they are made.
OPENERS = (
    "models.common.DetectMultiBackend",
    "ultralytics.engine",
    "ultralytics.models.sam",
    "ultralytics.nn.autobackend",
    "ultralytics.nn.backends",
    "yolov5.models.common.DetectMultiBackend",
)
# Modules whose classes are accepted, layers or not.
CLASSES = (
    "numpy.dtypes",
    "torchvision.transforms.functional",
    "torchvision.transforms.transforms",
    "ultralytics.data.augment",
    "ultralytics.utils.loss",
    "ultralytics.utils.tal",
    "utils.augmentations",
    "yolorep.blocks",
    "yolov5.utils.augmentations",
)
# Other names that are accepted, a module's in one line.
NAMES = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
        *("set", "slice", "str", "tuple"),
    },
    "collections": {"OrderedDict", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "timedelta", "timezone"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "torch": {"Size", "Tensor", "device"},
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch._utils": {
        *("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_qtensor", "_rebuild_tensor"),
        *("_rebuild_tensor_v2", "_rebuild_tensor_v3"),
    },
    "torch.nn.parameter": {"Buffer", "Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"TypedStorage", "UntypedStorage"},
    "types": {"SimpleNamespace"},
    "ultralytics.utils": {"IterableSimpleNamespace"},
}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_trusted: ContextVar[bool] = ContextVar("whether files may name anything", default=False)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Let `load` accept any name in the block, as for a file from a source that is trusted."""
    token = _trusted.set(trust)
    try:
        yield
    finally:
        _trusted.reset(token)


def load(path: Path) -> Any:
    """Read a checkpoint file onto the CPU.

    Raises:
        CheckpointError: the file names something that is no part of a model.
        ImportError, AttributeError: it names a layer that is not here.
    """
    if _trusted.get():
        return torch.load(path, map_location="cpu", weights_only=False)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except _RefusedName as error:
        raise CheckpointError(
            f"{path} names {error}, which is not a layer of ultralytics, YOLOv5, torch or yolorep, and could run any "
            "code when it is read; if it is of a block of your own, give --plugin FILE.py; if you trust where the file "
            "is from, give --trust"
        ) from None


def layers() -> list[Any]:
    """Return the layers of yolorep, for `add_safe_globals` of torch."""
    import yolorep.blocks as package

    names = [f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
    found = [value for name in names for value in vars(import_module(name)).values()]
    layers = {v for v in found if isinstance(v, type) and issubclass(v, nn.Module) and v.__module__ in names}
    return sorted(layers, key=lambda kind: kind.__qualname__)


def accept_squeeze_excitation(path: Any) -> None:
    """Let torch's own restricted loading accept torchvision's squeeze-and-excitation, if a checkpoint names it.

    Only then is torchvision imported: the import takes seconds, and makes ultralytics choose another NMS.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError):
        return  # not a checkpoint of torch.save: the loading that follows says so
    if "torchvision.ops.misc.SqueezeExcitation" in names:
        from torchvision.ops import SqueezeExcitation

        torch.serialization.add_safe_globals([SqueezeExcitation])


def plain_values(path: Path) -> dict[str, Any]:
    """Read the numbers, texts and None in a checkpoint's dictionary, such as `epoch`, without importing anything.

    Raises:
        CheckpointError: it is not a file of torch.save.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT)
    except Exception:  # an unpickler can fail in any way on a file that is no pickle
        raise CheckpointError(f"{path} is not a PyTorch checkpoint") from None
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if value is None or isinstance(value, (bool, int, float, str))}


class _Inert(dict):
    """Stands in for every class and function that a pickle names, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Inert


class _RefusedName(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = PYTHON_2.get(module, module)
        if (module, name) == ("builtins", "getattr"):  # how a method that was assigned to `forward` is stored
            return _method
        if name in NAMES.get(module, ()) and "." not in name:
            return super().find_class(module, name)
        full = f"{module}.{name}"
        listed = _within(module, CLASSES)
        if "." not in name and (
            listed or (_within(module, (*LAYERS, *plugins.modules())) and not _within(full, OPENERS))
        ):
            found = super().find_class(module, name)
            if isinstance(found, torch.dtype) or _acceptable(found, listed=listed):
                return found
        raise _RefusedName(full)


def _acceptable(found: Any, *, listed: bool) -> bool:
    """Whether this is a layer, or a class of a module that is listed, by where it is defined."""
    if not isinstance(found, type) or not (listed or issubclass(found, nn.Module)):
        return False
    full = f"{found.__module__}.{found.__qualname__}"
    return _within(full, (*LAYERS, *CLASSES, *plugins.modules())) and not _within(full, OPENERS)


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _method(owner: Any, name: str) -> Any:
    """`getattr` for the public methods of a layer and the `forward` of its class, and for nothing else.

    By other attributes all of Python can be reached. YOLOv5's Segment head holds `Detect.forward`.
    """
    layer = isinstance(owner, nn.Module) and not name.startswith("_")
    if layer and getattr(getattr(owner, name), "__self__", None) is owner:
        return getattr(owner, name)
    if name == "forward" and isinstance(owner, type) and issubclass(owner, nn.Module):
        return owner.forward
    raise _RefusedName(f"getattr(..., {name!r})")


def _as_pickle(unpickler: type[pickle.Unpickler]) -> Any:
    """What torch.load takes in place of the module `pickle`."""
    return SimpleNamespace(
        __name__=__name__, Unpickler=unpickler, load=lambda file, **options: unpickler(file, **options).load()
    )


_PICKLE, _INERT = _as_pickle(_Unpickler), _as_pickle(_InertUnpickler)
