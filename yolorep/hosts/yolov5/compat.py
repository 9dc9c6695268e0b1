"""Stand-ins for functions that YOLOv5 trees of 2020 to 2023 use and current libraries no longer have.

Each is installed only if the original is missing, for the whole process. The tree is not edited.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from yolorep.errors import HostError
from yolorep.hosts.offline import guard_hosts
from yolorep.hosts.yolov5 import old_trees
from yolorep.hosts.yolov5.tree import check_unmixed, find_tree

ENVIRONMENT = {
    # Since torch 2.6 torch.load reads only tensors by default; a tree's checkpoint is a pickled model.
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    "GIT_PYTHON_REFRESH": "quiet",  # import git must not fail where there is no git command
}


# (module, or module:class, that had a function; its name; what stands in for it, made from that owner)
ATTRIBUTES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("numpy", "trapz", lambda numpy: numpy.trapezoid),  # gone in numpy 2.4; average precision
    ("numpy", "int", lambda numpy: int),  # gone in numpy 1.24; the data loader of v6.2
    ("PIL.ImageFont:FreeTypeFont", "getsize", lambda font: _getsize),  # gone in Pillow 10; labels on images
)


def make_runnable(repo: Path | None = None) -> Path:
    """Make a YOLOv5 tree of any supported age importable in this process; return its folder.

    repo: the tree; by default the one in use, then the working directory, then the published `yolov5` package.

    Raises:
        HostError: there is no such tree, or another one is already imported.
    """
    tree = find_tree(repo)
    check_unmixed(tree)
    guard_hosts()
    stand_in()
    old_trees.register()
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    return tree


def tree_modules(repo: Path | None, *names: str) -> list[ModuleType]:
    """Return modules of a YOLOv5 tree by their names in a checkout; the tree is made runnable first.

    Raises:
        HostError: there is no such tree, another one is already imported, or a module that it needs is missing.
    """
    tree = make_runnable(repo)
    if not (tree / "utils" / "dataloaders.py").is_file():
        names = tuple("utils.datasets" if name == "utils.dataloaders" else name for name in names)  # before v6.2
    published = "yolov5." if (tree / "__init__.py").is_file() else ""
    try:
        return [import_module(published + name) for name in ("models.yolo", *names)][1:]
    except ImportError as error:
        raise HostError(f"{tree} cannot be imported: {error}; install what its requirements.txt lists") from None


def stand_in() -> None:
    """Install every stand-in whose original is missing; hold back a warning that only a tree's authors can act on."""
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    for place, name, make in ATTRIBUTES:
        module, _, cls = place.partition(":")
        owner = getattr(import_module(module), cls) if cls else import_module(module)
        if not hasattr(owner, name):
            setattr(owner, name, make(owner))
    wrapt.register_post_import_hook(_openvino_runtime, "openvino")
    for name, contents in MODULES.items():
        top = name.partition(".")[0]
        if top not in sys.modules and find_spec(top) is None:
            sys.modules[name] = _module(name, contents())


def _openvino_runtime(openvino: ModuleType) -> None:
    """Alias `openvino.runtime`, removed in OpenVINO 2026, which trees load OpenVINO models with."""
    if find_spec("openvino.runtime") is None:
        sys.modules.setdefault("openvino.runtime", openvino)


def _getsize(font: Any, text: str) -> tuple[int, int]:
    """Return width and height of `text` in pixels."""
    return font.getbbox(text)[2:]


def _pkg_resources() -> dict[str, Any]:
    """Removed in setuptools 82. The trees compare versions with it, and look for packages, to install them by pip.

    Here they find that nothing is missing: the launcher names a package that is, and installs none.
    """
    from packaging.version import parse

    faults = {name: type(name, (Exception,), {}) for name in ("DistributionNotFound", "VersionConflict")}
    return {"parse_version": parse, "parse_requirements": lambda lines: [], "require": lambda names: [], **faults}


def _ipython() -> dict[str, Any]:
    """v7.0 imports IPython outside notebooks too; matplotlib asks an imported IPython for its version."""
    return {"get_ipython": lambda: None, "version_info": (9, 0), "display": sys.modules.get("IPython.display")}


def _ipython_display() -> dict[str, Any]:
    return {"display": print}


def _git() -> dict[str, Any]:
    """v7.0 records the commit of its folder in checkpoints; without gitpython the commit is recorded as unknown."""

    class InvalidGitRepositoryError(Exception):
        pass

    def repo(path: Any) -> None:
        raise InvalidGitRepositoryError(path)

    return {"Repo": repo, "exc": _module("git.exc", {"InvalidGitRepositoryError": InvalidGitRepositoryError})}


MODULES = {  # a package comes after its modules; modules that can be imported are left alone
    "pkg_resources": _pkg_resources,
    "IPython.display": _ipython_display,
    "IPython": _ipython,
    "git": _git,
}


def _module(name: str, contents: dict[str, Any]) -> ModuleType:
    module = ModuleType(name, "A stand-in by yolorep.")
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(contents)
    return module
