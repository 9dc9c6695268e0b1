"""Keep the hosts off the network: no connectivity check, no font, weight or settings download, no auto-install."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import wrapt

ENVIRONMENT = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLOv5_AUTOINSTALL": "false"}


def go_offline() -> None:
    """Set the hosts' own switches for this process and its children, and give them a font that is on disk.

    Call before a host is imported. A switch that the user has set stays as it is.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    wrapt.register_post_import_hook(_give_font, "ultralytics.utils.checks")


def font() -> Path:
    """A TrueType font that is always there: DejaVu Sans, which matplotlib carries."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _give_font(checks: ModuleType) -> None:
    checks.check_font = lambda name="Arial.ttf": font()  # type: ignore[attr-defined]
