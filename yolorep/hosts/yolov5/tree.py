"""Find a YOLOv5 tree: a checkout, or the published `yolov5` package, which is laid out like one."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from yolorep.errors import HostError

LANDMARKS = ("models/yolo.py", "models/common.py", "utils/general.py")
SCRIPTS = ("train.py", "val.py", "detect.py", "export.py", "benchmarks.py")
TASKS = ("segment", "classify")
SUPPORTED = "YOLOv5 v5.0 to v7.0 and master, and the published yolov5 package"


def find_tree(repo: Path | None = None) -> Path:
    """The folder of a YOLOv5 tree: `repo`, else the one in use, else the working directory, else the `yolov5` package.

    Raises:
        HostError: `repo` is not one, or none of the others is there.
    """
    if repo is not None:
        if is_tree(repo):
            return repo.resolve()
        missing = [name for name in LANDMARKS if not (repo / name).is_file()]
        raise HostError(f"{repo} is not a YOLOv5 tree (no {', '.join(missing)}); accepted: {SUPPORTED}")
    for folder in (_loaded("models"), Path.cwd(), _installed()):
        if folder is not None and is_tree(folder):
            return folder.resolve()
    raise HostError(
        f"no YOLOv5 here: {Path.cwd()} is not a tree and the yolov5 package is not installed; "
        "run it in a tree, give --repo DIR, or pip install 'yolorep[yolov5]'"
    )


def is_tree(folder: Path) -> bool:
    """Whether `folder` holds the files by which a YOLOv5 tree of a supported age is known."""
    return all((folder / name).is_file() for name in LANDMARKS)


def find_script(tree: Path, script: str) -> Path:
    """The file of a script in a tree, such as `train.py` or `segment/val.py`.

    Raises:
        HostError: it is not in the tree; the message lists those that are.
    """
    path = (tree / script).resolve()
    if path.suffix == ".py" and path.is_file() and path.is_relative_to(tree):
        return path
    raise HostError(f"{tree} has no script {script!r}; accepted: {', '.join(scripts(tree))}")


def scripts(tree: Path) -> list[str]:
    """Names of the scripts that a tree has, relative to it."""
    names = [*SCRIPTS, *(f"{task}/{name}.py" for task in TASKS for name in ("train", "val", "predict"))]
    return [name for name in names if (tree / name).is_file()]


def check_unmixed(tree: Path) -> None:
    """Raises:
    HostError: `models` or `utils` are imported in this process, and are not those of `tree`.
    """
    for name in ("models", "utils"):
        other = _loaded(name)
        if other is not None and other.resolve() != tree:
            raise HostError(f"{name!r} is already imported from {other}; start a fresh process for {tree}")


def _loaded(name: str) -> Path | None:
    """The folder that holds the imported package `name`."""
    locations = list(getattr(sys.modules.get(name), "__path__", ()))
    return Path(locations[0]).parent if locations else None


def _installed() -> Path | None:
    spec = find_spec("yolov5")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None
