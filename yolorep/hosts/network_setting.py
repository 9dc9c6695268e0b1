"""The user's network setting, and the font that replaces one that cannot be downloaded. See `hosts.offline`."""

from __future__ import annotations

import os
from pathlib import Path

from yolorep.console import say_once
from yolorep.hosts.reachability import is_reachable

TRUE = {"1", "true", "yes", "on", "y", "t"}
FONTS = "https://github.com/ultralytics/assets"  # where the hosts download their fonts from


def is_offline() -> bool:
    """Return whether YOLO_OFFLINE is set, by the user or by `hosts.offline.go_offline`."""
    return os.environ.get("YOLO_OFFLINE", "").strip().lower() in TRUE


def font_file() -> Path:
    """Return the path of DejaVu Sans, a TrueType font that matplotlib installs."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def lends_font() -> bool:
    """Return whether a host that lacks its font gets DejaVu Sans, because the host cannot download its own."""
    return is_offline() or not is_reachable(FONTS)


def lent_font() -> str:
    """Return the path of the font that replaces a host's own; the replacement is printed once."""
    say_once("the font Arial is not here and cannot be downloaded; labels are drawn in DejaVu Sans")
    return str(font_file())
