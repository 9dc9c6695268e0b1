"""Keep the hosts off the network: no connectivity check, no font, weight or settings download, no auto-install."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from yolorep.errors import HostError
from yolorep.hosts.truncated_files import check_whole

_offline = False
ENVIRONMENT = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLOv5_AUTOINSTALL": "false"}


def go_offline() -> None:
    """Set the hosts' own switches for this process and its children, and give them a font that is on disk.

    Call before a host is imported. A switch that the user has set stays as it is.
    """
    global _offline
    _offline = True
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    wrapt.register_post_import_hook(_give_font, "ultralytics.utils.checks")
    wrapt.register_post_import_hook(_refuse_downloads, "ultralytics.utils.downloads")


def is_offline() -> bool:
    """Whether `go_offline` was called in this process."""
    return _offline


def keep_tree_offline() -> None:
    """Replace what reaches out of a YOLOv5 tree, which has no switch for it. Call before the tree is imported."""
    for name, replacements in IN_TREES.items():
        for module in (name, f"yolov5.{name}"):
            wrapt.register_post_import_hook(partial(_replace, replacements), module)


def font_file() -> Path:
    """A TrueType font that is always there: DejaVu Sans, which matplotlib carries."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _give_font(checks: ModuleType) -> None:
    checks.check_font = lambda name="Arial.ttf": font_file()  # type: ignore[attr-defined]


def _refuse_downloads(downloads: ModuleType) -> None:
    """ultralytics looks online for a model that is missing, whatever its switch says (and has one since 8.4 only)."""
    if downloads.safe_download is _refuse:
        return
    find = downloads.attempt_download_asset

    def find_on_disk(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return find(file, *args, **kwargs)
        except HostError:
            raise HostError(f"{file} does not exist and is not downloaded; accepted: a file") from None

    refused = dict.fromkeys(("safe_download", "get_github_assets"), _refuse)
    _replace({**refused, "attempt_download_asset": find_on_disk}, downloads)


def _replace(replacements: dict[str, Any], module: ModuleType) -> None:
    for name in replacements.keys() & vars(module).keys():
        setattr(module, name, replacements[name])


def _local(file: Any, *args: Any, **kwargs: Any) -> str:
    """In place of `attempt_download`: the file, if it is on disk."""
    path = Path(str(file).strip().replace("'", ""))
    if path.exists():
        check_whole(path)
        return str(path)
    raise HostError(f"{path} does not exist and is not downloaded; accepted: a file, or '' to train from scratch")


def _refuse(url: Any = "a file", *args: Any, **kwargs: Any) -> None:
    raise HostError(f"{url} is not on disk, and nothing is downloaded; accepted: files that are")


def _tree_font(font: Any = "Arial.ttf", size: int = 10) -> Any:
    """In place of `check_pil_font`: the font asked for if it is a file, else the one at hand."""
    from PIL import ImageFont

    return ImageFont.truetype(str(font if Path(font).is_file() else font_file()), size)


def _answer(value: Any) -> Any:
    return lambda *args, **kwargs: value


IN_TREES: dict[str, dict[str, Any]] = {
    "utils.general": {
        "check_font": _answer(None),
        "check_git_status": _answer(None),
        "check_online": _answer(False),
        "check_requirements": _answer(True),
        "download": _refuse,
    },
    "utils.downloads": {
        "attempt_download": _local,
        "attempt_download_from_hub": _answer(None),
        "safe_download": _refuse,
    },
    "utils.plots": {"check_pil_font": _tree_font},
}
