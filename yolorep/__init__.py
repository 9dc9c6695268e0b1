"""Structural re-parameterization for YOLO: train with many branches, ship a plain YOLO.

Importing this package installs the hooks into the hosts and nothing else; torch is imported with the first name that
needs it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from yolorep import errors
from yolorep._version import __version__
from yolorep.errors import BlockError, CheckpointError, FoldError, HostError, VerifyError, YolorepError
from yolorep.hosts import install as _install

if TYPE_CHECKING:
    from yolorep.blocks import C3, Bottleneck, Conv_C3
    from yolorep.deployment import deploy
    from yolorep.expansion import expand
    from yolorep.folding import fold
    from yolorep.summary import Summary, show
    from yolorep.verification import Report, verify

__all__ = [
    "C3",
    "BlockError",
    "Bottleneck",
    "CheckpointError",
    "Conv_C3",
    "FoldError",
    "HostError",
    "Report",
    "Summary",
    "VerifyError",
    "YolorepError",
    "__version__",
    "deploy",
    "errors",
    "expand",
    "fold",
    "show",
    "verify",
]
# Public names whose modules need torch, and those modules.
_LAZY = {
    "C3": "yolorep.blocks",
    "Bottleneck": "yolorep.blocks",
    "Conv_C3": "yolorep.blocks",
    "Report": "yolorep.verification",
    "Summary": "yolorep.summary",
    "deploy": "yolorep.deployment",
    "expand": "yolorep.expansion",
    "fold": "yolorep.folding",
    "show": "yolorep.summary",
    "verify": "yolorep.verification",
}

_install()


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first asked for."""
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
