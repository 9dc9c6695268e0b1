"""Runs the commands and scripts of a page, each in a process of its own that starts in milliseconds.

A fork server imports yolorep and ultralytics once; every command is a fork of it (`tests.fork_server`), so it finds
them imported and otherwise as in a fresh process. Commands of other programs are ordinary processes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fork_server import LIBRARIES, PROGRAMS, ForkServer, with_package

SERVER = ForkServer((*LIBRARIES, "ultralytics.engine.model", "yolorep.cli", "yolorep.hosts.checkpoints"))
BEGIN = "import runpy, sys; del sys.argv[0]; sys.path[0] = sys.argv.pop(0)\n"
SCRIPT = "runpy.run_path(sys.argv[0], run_name='__main__')"
COMMAND = """
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name=sys.argv[0])
sys.exit(script.load()())
"""
TIMEOUT = 240  # seconds for one command

# A page's commands are of a size for a user's data. What the tests write instead, so that each takes seconds.
TINY = {"epochs": 1, "batch": 4, "workers": 0, "plots": False, "exist_ok": True}
SIZES = {
    "bash": {
        r"\bepochs=\d+": " ".join(f"{name}={value}" for name, value in TINY.items()),
        r"--epochs \d+": "--epochs 1 --batch-size 4 --workers 0 --noplots --exist-ok",
        r"--imgsz 320 640 --batch 1 8": "--imgsz 64 --rounds 2",
        r"\bimgsz=\d+": "imgsz=64",
        r"--(img|imgsz) \d+": r"--\1 64",
        r"\byolov5s(?=[-.])": "yolov5n",
    },
    "python": {
        r"\bepochs=\d+": ", ".join(f"{name}={value}" for name, value in TINY.items()),
        r"\bimgsz=\d+": "imgsz=64",
        r"\byolov5s(?=[-.])": "yolov5n",
    },
}
# Both hosts put results below a folder of their settings; a reader's is the working directory.
RUNS = {
    ("yolorep", "train"): "project={folder}/runs/detect",
    ("yolo", "train"): "project={folder}/runs/detect",
    ("yolorep", "val"): "project={folder}/runs/detect",
    ("yolorep", "predict"): "project={folder}/runs/detect",
    ("yolo", "predict"): "project={folder}/runs/detect",
    ("yolorep", "yolov5", "train.py"): "--project runs/train",
    ("yolorep", "yolov5", "detect.py"): "--project runs/detect",
}
NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
UNFINISHED = re.compile(r"\s\d{1,2}%(\||\s)")  # of a progress bar that has other lines later


def small(language: str, code: str) -> str:
    """The code with tiny sizes in the place of a user's."""
    for written, run in SIZES[language].items():
        code = re.sub(written, run, code)
    return code


def command_lines(code: str) -> Iterator[str]:
    """The commands of a shell block, one a line, without comments; a backslash at the end continues a line."""
    for line in code.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)#.*", "", line)
        if command.strip():
            yield command


def run_shell(line: str, folder: Path) -> tuple[int, str]:
    """Exit code and output, both streams, of one command line in `folder`."""
    arguments = shlex.split(line)
    place = next((RUNS[tuple(arguments[:n])] for n in (2, 3) if tuple(arguments[:n]) in RUNS), "")
    added = shlex.split(place.format(folder=folder))
    if arguments[0] == "yolorep":
        return _forked(SERVER, COMMAND, [*arguments, *added], folder)
    if arguments[0] == "yolo":  # finds no yolorep
        return _forked(PROGRAMS, COMMAND, [*arguments, *added], folder)
    line = " ".join([line, *added])
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    return done.returncode, readable(done.stdout, folder)


def run_script(code: str, folder: Path) -> tuple[int, str]:
    """Exit code and output, both streams, of a Python script in `folder`."""
    script = folder / "example.py"
    script.write_text(code.replace(".train(", f".train(project={str(folder / 'runs')!r}, "))
    return _forked(SERVER, SCRIPT, [str(script)], folder)


def readable(text: str, folder: Path) -> str:
    """What a terminal would show in the end: no colours, no steps of a progress bar, no path of the test."""
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in NOISE.sub("", text).splitlines())
    kept = "\n".join(line for line in lines if not UNFINISHED.search(line))
    return re.sub(r"\n{3,}", "\n\n", kept).replace(f"{folder}/", "").replace(str(folder), ".").strip()


def _forked(server: ForkServer, program: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    sent = [str(folder), *arguments]
    done = server.run(BEGIN + program, sent, with_package({}), folder, TIMEOUT, merged=True)
    return done.returncode, readable(done.stdout, folder)
