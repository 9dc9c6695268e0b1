"""SIGKILL in the middle of every command that writes: the old or the new file, whole, and nothing left over.

Each command is killed once, late in its run, where files are written. With YOLOREP_KILLS=100 in the environment, that
many kills are spread over the commands.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT, write_rectangles
from yolorep import expand

ultralytics = pytest.importorskip("ultralytics")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
OLD = b"the file of an earlier run"
COMMANDS: dict[str, tuple[list[str], str]] = {  # name: arguments, the file or folder that is written
    "deploy": (["deploy", "rep.pt", "out.pt", "--overwrite"], "out.pt"),
    "expand": (["expand", "stock.pt", "out.pt", "--overwrite"], "out.pt"),
    "show": (["show", "rep.pt", "--json", "out.json", "--png", "out.png"], "out.json"),
    "split": (["split", "classes", "out"], "out"),
    "bench": (["bench", "repvgg", "--rounds", "2", "--imgsz", "8", "--channels", "8", "--out", "bench"], "bench"),
    "patch": (["patch", "tree"], "tree/models/yolo.py"),
}
KILLS = int(os.environ.get("YOLOREP_KILLS", str(len(COMMANDS))))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: checkpoints, a classifier's images, and a YOLOv5 tree."""
    folder = tmp_path_factory.mktemp("inputs")
    yolo = ultralytics.YOLO("yolov5n.yaml")
    yolo.save(folder / "stock.pt")
    yolo.model = expand(yolo.model)
    yolo.save(folder / "rep.pt")
    images = write_rectangles(folder / "images", train=6).parent / "images" / "train"
    for name in ("a", "b"):
        shutil.copytree(images, folder / "classes" / name)
    shutil.rmtree(folder / "images")
    package = pytest.importorskip("yolov5")
    models = Path(package.__file__).parent / "models"
    shutil.copytree(models, folder / "tree" / "models", ignore=shutil.ignore_patterns("__pycache__", "hub", "*.yaml"))
    shutil.copytree(models.parent / "utils", folder / "tree" / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "1"}
    command = [sys.executable, "-m", "yolorep", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole(file: Path) -> bool:
    """Whether a file that was replaced is the old one, or can be read to its end."""
    if file.suffix == ".pt":
        return file.read_bytes() == OLD or bool(torch.load(file, weights_only=False)["model"])
    return True


@pytest.fixture(scope="module")
def clean(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[set[str], float]]:
    """The names of all files after a run that nobody interrupts, and its seconds."""
    known: dict[str, tuple[set[str], float]] = {}

    def run(name: str) -> tuple[set[str], float]:
        if name not in known:
            folder = fresh(name, inputs, tmp_path_factory.mktemp(name))
            began = time.perf_counter()
            assert start(COMMANDS[name][0], folder).wait(300) == 0
            known[name] = set(listing(folder)), time.perf_counter() - began
        return known[name]

    return run


def fresh(name: str, inputs: Path, folder: Path) -> Path:
    """A copy of the inputs, with an old file where the command replaces one."""
    copy = folder / "work"
    shutil.copytree(inputs, copy)
    if name in ("deploy", "expand", "show"):
        (copy / COMMANDS[name][1]).write_bytes(OLD)
    return copy


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_command_leaves_whole_files_and_the_next_run_leaves_nothing_else(
    kill: int, inputs: Path, clean: Callable[[str], tuple[set[str], float]], tmp_path: Path
) -> None:
    name = list(COMMANDS)[kill % len(COMMANDS)]
    arguments, out = COMMANDS[name]
    names, seconds = clean(name)
    folder = fresh(name, inputs, tmp_path)
    before = listing(folder)
    process = start(arguments, folder)
    time.sleep(seconds * random.Random(kill).uniform(0.5, 1.05))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    after = listing(folder)
    untouched = {file for file in before if not file.startswith(out)}
    assert {file: after.get(file) for file in untouched} == {file: before[file] for file in untouched}
    if out in before:
        assert whole(folder / out)
    again = start(arguments, folder).wait(300)
    if name == "split" and again:  # a folder that a killed run left is named, and not overwritten
        shutil.rmtree(folder / out)
        again = start(arguments, folder).wait(300)
    assert again == 0
    assert set(listing(folder)) == names
