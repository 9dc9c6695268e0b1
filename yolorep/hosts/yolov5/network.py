"""Guard the functions of a YOLOv5 tree that use the network; `hosts.offline` states the rules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import wrapt

from yolorep.console import say
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.network_setting import is_offline
from yolorep.hosts.reachability import check_reachable, within_limit

RELEASES = "https://github.com/ultralytics/yolov5"
HUB = "https://huggingface.co"


def register() -> None:
    """Guard the functions as a tree's modules are imported; the published package's modules are `yolov5.utils.*`."""
    for name, functions in GUARDS.items():
        for module in (name, f"yolov5.{name}"):
            wrapt.register_post_import_hook(partial(_guard, functions), module)


def _guard(functions: dict[str, Callable[..., Any]], module: ModuleType) -> None:
    hooks = Hooks()
    for name, around in functions.items():
        if hasattr(module, name):
            hooks.wrap(module, name, around)


def _refusal(url: str) -> str:
    """Why nothing is downloaded from `url`; empty where the tree may try."""
    if is_offline():
        return "it is not downloaded offline (YOLO_OFFLINE is set)"
    try:
        check_reachable(url)
    except ConnectionError as error:
        return str(error)
    return ""


def _attempt_download(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the path of a file that is on disk; else let the tree download it.

    A tree that cannot download returns the path all the same, and its `torch.load` raises FileNotFoundError; so does
    this function, with the reason.
    """
    name = str(file).strip().replace("'", "")
    path = Path(name)
    if path.exists():
        check_whole(path)
        return str(path)
    reason = _refusal(name if name.lower().startswith(("http://", "https://")) else RELEASES)
    if reason:
        raise FileNotFoundError(f"{name} does not exist, and {reason}")
    return original(file, *args, **kwargs)


def _attempt_download_from_hub(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Return None, the published package's word for "not on the hub", where the hub cannot be asked."""
    return None if _refusal(HUB) else original(*args, **kwargs)


def _safe_download(original: Any, file: Any, url: Any, *args: Any, **kwargs: Any) -> None:
    """Leave the file missing and print the reason, as a tree does after a download that failed."""
    reason = _refusal(str(url))
    if reason:
        say(f"{url} is not downloaded: {reason}")
    else:
        original(file, url, *args, **kwargs)


def _download(original: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
    """Raise URLError, as a tree's download without a network does."""
    for one in [url] if isinstance(url, (str, Path)) else url:
        reason = "" if Path(one).is_file() else _refusal(str(one))
        if reason:
            raise URLError(f"{one} is not downloaded: {reason}")
    return original(url, *args, **kwargs)


def _check_font(original: Any, *args: Any, **kwargs: Any) -> None:
    """Download the font if that is possible; where it is not, `ImageFont.truetype` lends one."""
    if is_offline():
        return
    try:
        original(*args, **kwargs)
    except OSError as error:
        reason = getattr(error, "reason", error)  # of a URLError, whose text is "<urlopen error ...>"
        say(f"the font of the labels: {reason}")


def _check_git_status(original: Any, *args: Any, **kwargs: Any) -> Any:
    return None if is_offline() else original(*args, **kwargs)


def _check_online(original: Any) -> bool:
    return not is_offline() and _online(original)


@functools.cache
def _online(original: Callable[[], bool]) -> bool:
    try:
        return bool(within_limit(original))
    except TimeoutError:
        return False


def _check_requirements(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Offline, report that all is installed: trees before v6.2 call pip unasked, and nothing could be fetched."""
    return True if is_offline() else original(*args, **kwargs)


GUARDS: dict[str, dict[str, Callable[..., Any]]] = {
    "utils.general": {
        "check_font": _check_font,
        "check_git_status": _check_git_status,
        "check_online": _check_online,
        "check_requirements": _check_requirements,
        "download": _download,
    },
    "utils.downloads": {
        "attempt_download": _attempt_download,
        "attempt_download_from_hub": _attempt_download_from_hub,
        "safe_download": _safe_download,
    },
    "utils.google_utils": {"attempt_download": _attempt_download},  # v5.0
}
