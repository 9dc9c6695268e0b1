"""Say in one sentence which file or Python package a host has not found."""

from __future__ import annotations

import re
from pathlib import Path
from traceback import walk_tb

from yolorep.errors import first_line
from yolorep.hosts.network_setting import is_offline

# Modules whose package has another name, and those that an extra of yolorep's installs.
PACKAGES = {"cv2": "opencv-python", "git": "gitpython", "IPython": "ipython", "pkg_resources": "'setuptools<81'"}
EXTRAS = {"onnx": "export", "onnxruntime": "export", "onnxslim": "export", "onnxscript": "export", "yolov5": "yolov5"}

WHERE_CLASSES_ARE = "accepted: --plugin FILE.py with the block of your own, or its package installed"


def missing_file(error: FileNotFoundError) -> str:
    """Return the sentence for a file that a host has not found."""
    if error.filename is None:
        return first_line(error)
    offline = " and is not downloaded offline (YOLO_OFFLINE is set)" if is_offline() else ""
    return f"{error.filename} does not exist{offline}"


def needed(error: ModuleNotFoundError, requirements: Path | None = None) -> str:
    """Return the sentence's end for a missing module: its name and how to install it.

    A module that only a checkpoint names, such as a plugin, is not looked for on an index: a package there of the same
    name is a stranger's.
    """
    name = (error.name or str(error).removeprefix("No module named ").strip("'")).partition(".")[0]
    if name not in PACKAGES | EXTRAS and any(
        frame.f_code.co_name == "find_class" for frame, _ in walk_tb(error.__traceback__)
    ):
        return f"the module {name}, of which the checkpoint has a class; {WHERE_CLASSES_ARE}"
    return f"{name}, which is not installed: {install_line(name, requirements)}"


def install_line(module: str, requirements: Path | None = None) -> str:
    """Return the command that installs what provides `module`.

    requirements: the host's own file, where it has one. If it lists the package, the command installs all of it.
    """
    if module in EXTRAS:
        return f"pip install 'yolorep[{EXTRAS[module]}]'"
    package = PACKAGES.get(module, module)
    if requirements is not None and requirements.is_file():
        listed = re.findall(r"^[\w.-]+", requirements.read_text(encoding="utf-8", errors="ignore"), re.MULTILINE)
        if package in listed:
            return f"pip install -r {requirements}"
    return f"pip install {package}"
