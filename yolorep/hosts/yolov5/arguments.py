"""Read, change and check the arguments of a YOLOv5 script before it runs: some make a folder for the run first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yolorep.errors import HostError, UsageError
from yolorep.host import YOLOV5
from yolorep.hosts import data_downloads
from yolorep.hosts.checkpoints import check_model_file, check_resumes
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.model_files import check_model_yaml
from yolorep.hosts.network_setting import is_offline
from yolorep.hosts.shared_hooks import DATA_KEYS, read_yaml
from yolorep.paths import exists, is_dir, is_file

TRAINS = ("train.py", "segment/train.py", "classify/train.py")
RELEASED = re.compile(r"yolo\w+?[nsmltx]?6?(-cls|-seg)?\.pt")
WEIGHTS = ("--weights", "--model")


def check(script: str, arguments: Sequence[str], tree: Path) -> None:
    """Refuse weights that no script of a tree can read, and, before training, data that is not there.

    script: relative to the tree.

    Raises:
        CheckpointError: a file of weights is damaged or holds no model.
        BlockError: a model YAML is not accepted.
        HostError: weights or images are missing and are not downloaded.
        UsageError: weights are ultralytics'; a run that has ended is to be resumed.
    """
    for option, value in values(arguments):
        if option in WEIGHTS and value.endswith(".pt"):
            _check_weights(Path(value), script)
        elif option == "--source":
            exists(Path(value))  # raises where the system does not take such a path
        elif option == "--cfg":
            check_model_yaml(Path(value), YOLOV5, tree)
        elif option == "--hyp" and is_file(Path(value)):
            read_yaml(Path(value), "a YAML of hyperparameters: accepted is a mapping such as the tree's hyps/*.yaml")
        elif option == "--data" and script in TRAINS[:2] and Path(value).suffix in (".yaml", ".yml"):
            _check_images(Path(value), tree)
        elif option == "--resume" and value.endswith(".pt"):
            if not exists(Path(value)):
                raise HostError(f"--resume {value}: no such file; accepted: the last.pt of an interrupted run")
            check_resumes(Path(value))


def values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair each value with the option that it belongs to: `--weights a.pt b.pt` and `--weights=a.pt` alike."""
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            if equals:
                yield option, value
        elif option:
            yield option, argument


def with_values(arguments: Sequence[str], options: tuple[str, ...], change: Callable[[str], str]) -> list[str]:
    """Return the arguments with the values of some options changed."""
    result = []
    for previous, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=") if argument.startswith("--") else (previous, "", argument)
        if name in options and value:
            argument = f"{name}={change(value)}" if equals else change(value)
        result.append(argument)
    return result


def _check_weights(path: Path, script: str) -> None:
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        return
    if not exists(path):
        if is_offline():
            raise HostError(f"{path} does not exist, and it is not downloaded offline (YOLO_OFFLINE is set)")
        if path.parent != Path() or not RELEASED.fullmatch(path.name):
            raise HostError(f"{path} does not exist; accepted: a file, or the name of a release such as yolov5s.pt")
        return
    if is_dir(path):
        raise HostError(f"{path} is a folder; accepted: a checkpoint file, or the name of a release such as yolov5s.pt")
    check_whole(path)
    if check_model_file(path) == "ultralytics":
        mode = {"detect.py": "predict"}.get(script, Path(script).stem)
        raise UsageError(f"{path} is a checkpoint of ultralytics; use `yolorep {mode} model={path}`")


def _check_images(file: Path, tree: Path) -> None:
    """A data YAML of the user's; those that the tree finds by name are left to it."""
    if not is_file(file):
        return
    content = read_yaml(file, DATA_KEYS)
    missing = [key for key in ("train", "val") if not content.get(key)]
    if missing:
        raise HostError(f"{file} has no {missing[0]}; it is not {DATA_KEYS}")
    places = content["val"]
    if content.get("download") and data_downloads.may_run(file, content["download"]):
        return
    root = folder_of(content, file, tree)
    missing = [str(place) for place in ([places] if isinstance(places, str) else places) if not (root / place).exists()]
    if missing:
        raise HostError(f"{file}: no images in {root} ({missing[0]}); check path, train, val")


def folder_of(content: dict[str, Any], file: Path, tree: Path) -> Path:
    """The folder that a data YAML's paths are below: its `path:`, from the tree's root, or the folder of the file."""
    return tree / str(content["path"]) if content.get("path") else file.resolve().parent
