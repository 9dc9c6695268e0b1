"""What the YOLOv5 tests share: where its trees are, and `yolorep yolov5` in a process that has no network."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes import NO_NETWORK, run, yolorep
from yolorep.hosts.network_setting import font_file

# Checkouts to test with besides the published package: their folders, separated as in PATH.
TREES = [Path(p) for p in os.environ.get("YOLOREP_YOLOV5_TREES", "").split(os.pathsep) if p]


def _known(tree: Path) -> object:
    """The tree, skipped before v6.2, whose scripts lack options that the tests give."""
    lacks = "--noplots" not in (tree / "train.py").read_text(encoding="utf-8")
    return pytest.param(tree, marks=pytest.mark.skip("a tree before v6.2")) if lacks else tree


RECENT = [_known(tree) for tree in TREES]
PACKAGE = [Path(spec.origin).parent] if (spec := find_spec("yolov5")) is not None and spec.origin else []
HOSTS = [*PACKAGE, *RECENT] or [pytest.param(None, marks=pytest.mark.skip("optional host: no YOLOv5 here"))]
needs_package = pytest.mark.skipif(find_spec("yolov5") is None, reason="optional host: pip install 'yolorep[yolov5]'")
needs_trees = pytest.mark.skipif(not TREES, reason="optional host: YOLOREP_YOLOV5_TREES names YOLOv5 checkouts")

SCRIPT = """
import os, runpy
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(*arguments: object, cwd: Path, code: int = 0) -> str:
    """What `yolorep yolov5 ARGUMENTS` prints, both streams, in a process of its own whose network is refused."""
    return yolorep("yolov5", *arguments, cwd=cwd, code=code)


def plain(script: Path, *arguments: object, cwd: Path, **env: str) -> str:
    """What `python script ARGUMENTS` prints, with no yolorep but what the script itself comes to import."""
    (cwd / "config").mkdir(exist_ok=True)
    (cwd / "config" / "Arial.ttf").write_bytes(font_file().read_bytes())
    env = {"YOLOV5_CONFIG_DIR": str(cwd / "config"), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", **env}
    program = NO_NETWORK + SCRIPT
    return run(program, script, *arguments, cwd=cwd, optional="IPython", fresh=True, **env)  # v7.0 imports it


def forget_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the modules of every YOLOv5 tree out of this process, which an earlier test may have run a tree in."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "utils", "yolov5")]:
        monkeypatch.delitem(sys.modules, name)
