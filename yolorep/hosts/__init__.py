"""Attach hooks to a host when its modules are imported. This package imports no host."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import wrapt

from yolorep.host import HOSTS
from yolorep.hosts.hooks import Hooks

# Modules to hook when they are imported, and the module of yolorep that does.
HOOKS = {module: f"yolorep.hosts.{host.name}.{file}" for host in HOSTS for module, file in host.hooks.items()}
HOOKS["yolov6.utils.torch_utils"] = "yolorep.hosts.other_trees"
_attached: dict[str, tuple[ModuleType, Hooks]] = {}
_registered = False  # wrapt cannot unregister an import hook
_active = False


def install() -> None:
    """Hook every supported host in this process, imported already or later. Calling it again does nothing."""
    global _registered, _active
    _active = True
    if not _registered:
        _registered = True
        for name in HOOKS:
            wrapt.register_post_import_hook(_attach, name)
    for name in HOOKS:
        if name in sys.modules:
            _attach(sys.modules[name])


def uninstall() -> None:
    """Restore the hosts; hosts that are imported later stay unhooked until `install`."""
    global _active
    while _attached:
        _attached.popitem()[1][1].remove()
    _active = False


def attached() -> list[str]:
    """Return the names of the host modules that are hooked in this process."""
    return sorted(_attached)


def _attach(module: ModuleType) -> None:
    known = _attached.get(module.__name__)
    if not _active or (known is not None and known[0] is module):
        return
    if getattr(module.__spec__, "_initializing", False):
        _defer(module)
        return
    hooks = importlib.import_module(HOOKS[module.__name__]).attach(module)
    if hooks:
        _attached[module.__name__] = (module, hooks)


def _defer(module: ModuleType) -> None:
    """Hook a host module that imports yolorep while it is being imported, as soon as its import is complete.

    At that time the import system only executes `spec._initializing = False`.
    """

    class Watched(ModuleSpec):
        @property
        def _initializing(self) -> bool:
            return True

        @_initializing.setter
        def _initializing(self, initializing: bool) -> None:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            self._initializing = initializing
            if not initializing and sys.modules.get(module.__name__) is module:
                _attach(module)

    spec = module.__spec__
    if type(spec) is ModuleSpec:
        spec.__class__ = Watched
