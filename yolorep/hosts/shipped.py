"""The model YAMLs that yolorep ships, found by bare name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any


def folders() -> list[Path]:
    """Return `yolorep/models` and the gallery: `models_yaml` beside the package in a checkout, in it once installed."""
    package = Path(str(files("yolorep")))
    return [f for f in (package / "models", package / "models_yaml", package.parent / "models_yaml") if f.is_dir()]


def shipped() -> dict[str, Path]:
    """Return every shipped model YAML by file name."""
    return {path.name: path for folder in reversed(folders()) for path in sorted(folder.rglob("*.yaml"))}


def find_yaml(file: Any) -> Any:
    """Return the shipped file for a bare name that is not a file in the working directory; any other name unchanged."""
    name = str(file)
    if Path(name).name != name or Path(name).exists():
        return file
    return str(shipped().get(name, file))
