"""Find a YOLOv5 tree: a checkout, or the published `yolov5` package, which is laid out like one."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from yolorep.errors import HostError
from yolorep.host import YOLOV5
from yolorep.paths import is_file

LANDMARKS = ("models/yolo.py", "models/common.py", "utils/general.py")
SCRIPTS = ("train.py", "val.py", "test.py", "detect.py", "export.py", "models/export.py", "benchmarks.py")
TASKS = ("segment", "classify")
YOLOV7 = "IDetect"  # a head in its models/yolo.py, which has the landmarks of a YOLOv5 tree


def find_tree(repo: Path | None = None) -> Path:
    """Return the folder of a YOLOv5 tree: `repo`, else the one in use, the working directory, the `yolov5` package.

    Raises:
        HostError: `repo` or the working directory looks like a tree and is not one of YOLOv5, or there is no tree.
    """
    loaded = _loaded("models")
    if repo is None and loaded is not None and is_tree(loaded):
        return loaded.resolve()
    chosen = repo if repo is not None else _usual()
    if chosen is None:
        raise HostError(
            f"no YOLOv5 here: {Path.cwd()} is not a tree and the yolov5 package is not installed; "
            "run it in a tree, give --repo DIR, or pip install 'yolorep[yolov5]'"
        )
    missing = [name for name in LANDMARKS if not is_file(chosen / name)]
    if missing:
        raise HostError(f"{chosen} is not a YOLOv5 tree (no {', '.join(missing)}); accepted: {YOLOV5.supported}")
    if YOLOV7 in (chosen / LANDMARKS[0]).read_text(encoding="utf-8", errors="ignore"):
        raise HostError(
            f"{chosen} is a YOLOv7 tree; accepted: {YOLOV5.supported}. In YOLOv7, import yolorep and call "
            "yolorep.deploy(model)"
        )
    return chosen.resolve()


def to_name(tree: Path) -> Path | None:
    """Return the folder to give with `--repo` for this tree; None if a command finds it by itself."""
    usual = _usual()
    return None if usual is not None and usual.resolve() == tree.resolve() else tree


def _usual() -> Path | None:
    here = Path.cwd()
    return here if is_file(here / LANDMARKS[0]) else _installed()


def is_tree(folder: Path) -> bool:
    """Return whether `folder` holds the files that identify a YOLOv5 tree."""
    return all((folder / name).is_file() for name in LANDMARKS)


def find_script(tree: Path, script: str) -> Path:
    """Return the file of a script in a tree, such as `train.py` or `segment/val.py`.

    Raises:
        HostError: it is not in the tree; the message lists those that are.
    """
    path = (tree / script).resolve()
    if path.suffix == ".py" and path.is_file() and path.is_relative_to(tree):
        return path
    raise HostError(f"{tree} has no script {script!r}; accepted: {', '.join(scripts(tree))}")


def scripts(tree: Path) -> list[str]:
    """Return the names of the scripts that a tree has, relative to it."""
    names = [*SCRIPTS, *(f"{task}/{name}.py" for task in TASKS for name in ("train", "val", "predict"))]
    return [name for name in names if (tree / name).is_file()]


def check_unmixed(tree: Path) -> None:
    """Check that this process has not imported the modules of another tree.

    Raises:
        HostError: `models` or `utils` are imported from another place than `tree`.
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
