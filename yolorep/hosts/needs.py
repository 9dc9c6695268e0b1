"""Say in one sentence which file or Python package a host has not found."""

from __future__ import annotations

from yolorep.errors import first_line
from yolorep.hosts.offline import is_offline

# Modules whose package has another name, and those that an extra of yolorep's installs.
PACKAGES = {"cv2": "opencv-python", "git": "gitpython", "IPython": "ipython", "pkg_resources": "'setuptools<81'"}
EXTRAS = {"onnx": "export", "onnxruntime": "export", "onnxslim": "export", "onnxscript": "export", "yolov5": "yolov5"}


def missing_file(error: FileNotFoundError) -> str:
    """Return the sentence for a file that a host has not found."""
    if error.filename is None:
        return first_line(error)
    offline = " and is not downloaded offline (YOLO_OFFLINE is set)" if is_offline() else ""
    return f"{error.filename} does not exist{offline}"


def needed(error: ModuleNotFoundError) -> str:
    """Return the sentence's end for a missing module: its name and how to install it."""
    name = (error.name or str(error).removeprefix("No module named ").strip("'")).partition(".")[0]
    return f"{name}, which is not installed: {install_line(name)}"


def install_line(module: str) -> str:
    """Return the command that installs what provides `module`."""
    if module in EXTRAS:
        return f"pip install 'yolorep[{EXTRAS[module]}]'"
    return f"pip install {PACKAGES.get(module, module)}"
