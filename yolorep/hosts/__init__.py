"""Hooks into the hosts, attached when a host module is imported. Nothing here imports a host."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import wrapt

from yolorep.hosts.hooks import Hooks

ADAPTERS = {
    "ultralytics.nn.tasks": "yolorep.hosts.ultralytics",
    "models.yolo": "yolorep.hosts.yolov5",
    "yolov5.models.yolo": "yolorep.hosts.yolov5",
}
_attached: dict[str, tuple[ModuleType, Hooks]] = {}
_registered = False


def install() -> None:
    """Hook every supported host that is imported, now or later, in this process. Again does nothing."""
    global _registered
    if not _registered:
        _registered = True
        for name in ADAPTERS:
            wrapt.register_post_import_hook(_attach, name)
    for name in ADAPTERS:
        if name in sys.modules:
            _attach(sys.modules[name])


def uninstall() -> None:
    """Put the hosts back as they were; a host imported from now on stays as it is, until `install`."""
    global _registered
    while _attached:
        _attached.popitem()[1][1].remove()
    _registered = None  # type: ignore[assignment]


def attached() -> list[str]:
    """The host modules that are hooked in this process."""
    return sorted(_attached)


def _attach(module: ModuleType) -> None:
    known = _attached.get(module.__name__)
    if not _registered or (known is not None and known[0] is module):
        return
    adapter = importlib.import_module(ADAPTERS[module.__name__])
    _attached[module.__name__] = (module, adapter.attach(module))
