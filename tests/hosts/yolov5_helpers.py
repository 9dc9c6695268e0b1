"""What the YOLOv5 tests share: where its trees are, and `yolorep yolov5` in a fresh process that has no network."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import ROOT
from yolorep.hosts.offline import font_file

# Checkouts to test with besides the published package: their folders, separated as in PATH.
TREES = [Path(p) for p in os.environ.get("YOLOREP_YOLOV5_TREES", "").split(os.pathsep) if p]

needs_package = pytest.mark.skipif(find_spec("yolov5") is None, reason="optional host: pip install 'yolorep[yolov5]'")
needs_trees = pytest.mark.skipif(not TREES, reason="optional host: YOLOREP_YOLOV5_TREES names YOLOv5 checkouts")

# Everything but the loopback raises, and says so, so that a host that catches the error is found out too.
NO_NETWORK = """
import socket, sys

def guard(name, real):
    def call(*args, **kwargs):
        address = args[1] if name.startswith("connect") else args[0]
        host = address[0] if isinstance(address, tuple) else address
        unix = name.startswith("connect") and args[0].family == socket.AF_UNIX
        if not unix and host is not None and str(host) not in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
            print("NETWORK", name, address, file=sys.stderr, flush=True)
            raise OSError("the network is refused")
        return real(*args, **kwargs)
    return call

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, guard(name, getattr(socket.socket, name)))
socket.getaddrinfo = guard("getaddrinfo", socket.getaddrinfo)
"""
LAUNCH = """
import runpy
sys.argv[0] = "yolorep"
runpy.run_module("yolorep", run_name="__main__", alter_sys=True)
"""
SCRIPT = """
import os, runpy
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(*arguments: object, cwd: Path, code: int = 0) -> str:
    """What `yolorep yolov5 ARGUMENTS` prints, both streams, in a fresh process whose network is refused."""
    return _run(NO_NETWORK + LAUNCH, "yolov5", *arguments, cwd=cwd, code=code)


def plain(script: Path, *arguments: object, cwd: Path, **env: str) -> str:
    """What `python script ARGUMENTS` prints, with no yolorep but what the script itself comes to import."""
    (cwd / "config").mkdir(exist_ok=True)
    (cwd / "config" / "Arial.ttf").write_bytes(font_file().read_bytes())
    env = {"YOLOV5_CONFIG_DIR": str(cwd / "config"), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", **env}
    return _run(NO_NETWORK + SCRIPT, script, *arguments, cwd=cwd, **env)


def _run(python: str, *arguments: object, cwd: Path, code: int = 0, **env: str) -> str:
    path = os.pathsep.join(filter(None, (env.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
    command = [sys.executable, "-c", python, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600)
    printed = done.stdout + done.stderr
    if "No module named 'IPython'" in printed:  # which v7.0 needs where yolorep does not run it
        pytest.skip("optional host: this tree needs IPython")
    assert done.returncode == code, printed[-4000:]
    assert "NETWORK" not in printed, printed[-4000:]
    return printed
