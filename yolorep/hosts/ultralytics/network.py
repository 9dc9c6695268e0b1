"""Guard the functions of ultralytics that use the network; `hosts.offline` states the rules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from yolorep.console import say_once
from yolorep.hosts.data_downloads import may_run, report
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.network_setting import is_offline, lends_font, lent_font
from yolorep.hosts.reachability import check_reachable, is_reachable
from yolorep.hosts.shared_hooks import read_yaml

API = "https://api.github.com"


def register() -> None:
    """Guard the functions as their modules are imported, now or later."""
    for module, functions in GUARDS.items():
        wrapt.register_post_import_hook(partial(_guard, functions), module)


def _guard(functions: dict[str, Callable[..., Any]], module: ModuleType) -> None:
    hooks = Hooks()
    importers = [other for name, other in list(sys.modules.items()) if name.startswith("ultralytics.")]
    for name, around in functions.items():
        if hasattr(module, name):
            hooks.wrap_copies(module, name, around, importers)


def _safe_download(original: Any, url: Any, file: Any = None, dir: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Raise ConnectionError for a missing file before connecting, as the host does after it."""
    local = "://" not in str(url) and Path(str(url)).is_file()
    present = file is not None and (Path(dir or ".") / file).is_file()
    if not local and not present:
        name = Path(file).name if file else str(url).rpartition("/")[2]
        if is_offline():
            raise ConnectionError(f"{name} is not on disk, and is not downloaded offline (YOLO_OFFLINE is set)")
        try:
            check_reachable(str(url))
        except ConnectionError as error:
            raise ConnectionError(f"{name} is not on disk, and is not downloaded: {error}") from None
    return original(url, file, dir, *args, **kwargs)


def _get_github_assets(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Return no assets, as the host does since 8.4 where it gets no answer; before, it ends in a traceback."""
    if is_offline():
        return "", []
    try:
        check_reachable(API)
    except ConnectionError as error:
        say_once(f"the list of models to download is not here: {error}")
        return "", []
    return original(*args, **kwargs)


def _is_url(original: Any, url: Any, check: bool = False) -> bool:
    """Return False for a URL whose server has to be asked and cannot be."""
    valid = original(url, False)
    if not check or not valid:
        return valid
    return not is_offline() and is_reachable(str(url)) and original(url, True)


def _check_font(original: Any, font: Any = "Arial.ttf") -> Any:
    """Return a font in any case: the host's own, or DejaVu Sans where that is not here and cannot be downloaded."""
    return (None if is_offline() else original(font)) or (lent_font() if lends_font() else None)


def _check_det_dataset(original: Any, dataset: Any, autodownload: bool = True, *args: Any, **kwargs: Any) -> Any:
    """Download only in training, and say first what that runs. Elsewhere raise what the host raises without it."""
    try:
        return original(dataset, False, *args, **kwargs)
    except FileNotFoundError:
        download = _download_of(dataset) if autodownload else None
        if not download or not may_run(dataset, download):
            raise
    report(dataset, download, "ultralytics")
    return original(dataset, True, *args, **kwargs)


def _download_of(dataset: Any) -> Any:
    """Return the `download:` of a data YAML, which the host finds by its name too; None for an archive."""
    from ultralytics.utils.checks import check_file

    if Path(str(dataset)).suffix not in (".yaml", ".yml"):
        return None
    return read_yaml(Path(check_file(dataset)), "a data YAML").get("download")


def _check_cls_dataset(original: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
    """Offline, raise FileNotFoundError for a classification data set that is not here: ImageNet's has a script."""
    from ultralytics.utils import DATASETS_DIR

    places = (Path(str(dataset)), Path(DATASETS_DIR) / str(dataset))
    if is_offline() and not any(place.exists() for place in places):
        raise FileNotFoundError(f"Dataset '{dataset}' is not on disk, and is not downloaded offline")
    return original(dataset, *args, **kwargs)


GUARDS: dict[str, dict[str, Callable[..., Any]]] = {
    "ultralytics.utils.downloads": {
        "safe_download": _safe_download,
        "get_github_assets": _get_github_assets,
        "is_url": _is_url,
    },
    "ultralytics.utils.checks": {"check_font": _check_font},
    "ultralytics.data.utils": {"check_det_dataset": _check_det_dataset, "check_cls_dataset": _check_cls_dataset},
}
