"""Model YAMLs with a key `base:`, which hold only what differs from another YAML."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolorep.errors import HostError
from yolorep.host import ULTRALYTICS, Host
from yolorep.hosts.shared_hooks import read_yaml
from yolorep.hosts.shipped import shipped
from yolorep.paths import is_file
from yolorep.row_schema import LAYOUT

BASE = "base"  # top-level key: the YAML that has the other keys


def with_base(content: dict[str, Any], file: Path, host: Host, tree: Path | None = None) -> dict[str, Any]:
    """Return a model dictionary with the keys of its base, which its own keys replace; without a base, `content`.

    file: where it stands. tree: the YOLOv5 tree that will build it. A base may have a base. It is looked for beside the
    file, then among the YAMLs that yolorep ships, then among the host's.

    Raises:
        HostError: a base is not found, is no YAML, or is its own base.
    """
    read = [file]
    while BASE in content:
        name, own = content[BASE], {key: value for key, value in content.items() if key != BASE}
        base = _found(name, read[-1], host, tree)
        if base in read:
            raise HostError(f"{file}: base: {name} leads back to {base.name}; accepted: a YAML that ends in rows")
        content = {**read_yaml(base, f"a model YAML; {LAYOUT}"), **own}
        read.append(base)
    return content


def has_base(file: Path | None) -> bool:
    """Return whether a YAML names a base; a host reads one without."""
    return file is not None and is_file(file) and f"\n{BASE}:" in "\n" + file.read_text("utf-8", errors="ignore")


def _found(name: Any, file: Path, host: Host, tree: Path | None) -> Path:
    if isinstance(name, str) and name:
        for path in _places(name, file, host, tree):
            if is_file(path) and path != file:
                return path
    raise HostError(
        f"{file}: base: {name!r} is not found; accepted: a YAML beside it, or one that yolorep or {host.name} ships"
    )


def _places(name: str, file: Path, host: Host, tree: Path | None) -> Iterator[Path]:
    yield file.parent / name
    if Path(name).name != name:
        return
    yield from filter(None, [shipped().get(name)])
    for folder in _own_folders(host, tree):
        yield from sorted(folder.rglob(name))


def _own_folders(host: Host, tree: Path | None) -> list[Path]:
    """Return the folders with the YAMLs of a host, which is not imported for it."""
    if host is not ULTRALYTICS:
        return [] if tree is None else [tree / "models"]
    package = find_spec(host.name)
    return [Path(folder) / "cfg" / "models" for folder in (package and package.submodule_search_locations) or ()]
