"""Decide whether the hosts may use the network.

- yolorep itself never connects to anything and never installs a package. Its own commands (demo, expand, deploy,
  verify, bench, ...) call `go_offline`, under which the hosts do neither for them.
- Commands that run a host (train, val, predict, export, track, tune, benchmark, and a script of a YOLOv5 tree) call
  `guard_hosts`. The host then downloads weights, data and fonts, and installs packages, as it does without yolorep:
  YOLO_AUTOINSTALL and YOLOv5_AUTOINSTALL keep the user's setting. A server that cannot be reached is given up after
  5 seconds (`hosts.reachability`).
- YOLO_OFFLINE=1 or --offline applies the first rule to the second kind of command as well.
- The `download:` key of a data YAML may hold a program. Only training runs it, and names it first
  (`hosts.data_downloads`).

A function of a host that is replaced here, in `hosts.ultralytics.network` or in `hosts.yolov5.network` fails as the
original does on a machine without a network, because the host catches that error and no other: the AMP check of
ultralytics, for example, goes on after a ConnectionError.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

import wrapt

from yolorep.host import HOSTS
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.network_setting import is_offline, lends_font, lent_font
from yolorep.hosts.reachability import check_reachable, limit_lookups
from yolorep.telemetry import send_no_telemetry

# "true" is the one spelling that every version of ultralytics reads.
ENVIRONMENT = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLOv5_AUTOINSTALL": "false"}
_guarded = False


def go_offline() -> None:
    """Keep the hosts off the network in this process and its children. Call it before a host is imported."""
    os.environ.update(ENVIRONMENT)
    guard_hosts()


def guard_hosts() -> None:
    """Let the hosts use the network, unless YOLO_OFFLINE is set, without long waits. Call before one is imported."""
    global _guarded
    if is_offline():
        os.environ.update(ENVIRONMENT)
        send_no_telemetry()
    else:
        limit_lookups()
    if _guarded:
        return
    _guarded = True
    for host in HOSTS:
        import_module(f"yolorep.hosts.{host.name}.network").register()
    wrapt.register_post_import_hook(_guard_fonts, "PIL.ImageFont")
    wrapt.register_post_import_hook(_guard_torch_hub, "torch.hub")


def is_guarded() -> bool:
    """Whether `guard_hosts` or `go_offline` was called in this process."""
    return _guarded


def _guard_fonts(module: Any) -> None:
    """Have `ImageFont.truetype` return DejaVu Sans where a host asks for an Arial that it cannot download."""
    Hooks().wrap(module, "truetype", _truetype)


def _truetype(original: Any, font: Any = None, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(font, *args, **kwargs)
    except OSError:
        if not Path(str(font)).name.lower().startswith("arial") or not lends_font():
            raise
        return original(lent_font(), *args, **kwargs)


def _guard_torch_hub(module: Any) -> None:
    Hooks().wrap(module, "download_url_to_file", _download_url_to_file)


def _download_url_to_file(original: Any, url: str, *args: Any, **kwargs: Any) -> None:
    """Raise URLError at once where the original would after the connection has timed out."""
    if is_offline():
        raise URLError(f"{url} is not downloaded offline (YOLO_OFFLINE is set)")
    try:
        check_reachable(url)
    except ConnectionError as error:
        raise URLError(f"{url} is not downloaded: {error}") from None
    original(url, *args, **kwargs)
