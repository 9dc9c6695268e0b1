"""Run the scripts of an unmodified YOLOv5 tree in this process, with rep models and shipped names known to them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from yolorep.errors import HostError
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.shared_hooks import read_yaml
from yolorep.hosts.shipped import find_yaml
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.hosts.yolov5.training_hooks import take_options
from yolorep.hosts.yolov5.tree import find_script, find_tree

LEAVES = "classify/train.py"  # goes to its tree's folder before it looks for its model and data


def run_script(script: str, arguments: Sequence[str], repo: Path | None = None) -> None:
    """Run `script` of a YOLOv5 tree as `python script arguments` would, from the user's working directory.

    script: relative to the tree, such as `train.py` or `segment/train.py`. repo: the tree; by default the working
    directory, then the published `yolov5` package. A `--cfg` may be the bare name of a YAML that yolorep ships, and a
    `--data` file without `path:` means the folders beside it.

    Raises:
        HostError: no tree, no such script, another tree is imported already, or a file that is named is missing.
    """
    tree = find_tree(repo)
    path = find_script(tree, script)
    script = path.relative_to(tree).as_posix()
    arguments = take_options(script, arguments)
    if script == LEAVES:
        arguments = _named_in_full(arguments)
    with _started_from(path, arguments):
        make_runnable(tree)
        for name in ("utils.general", "yolov5.utils.general"):
            wrapt.register_post_import_hook(teach_files, name)
        runpy.run_path(str(path), run_name="__main__")


def teach_files(general: ModuleType) -> None:
    """Have a tree's `utils.general` find what yolorep ships, and data sets beside their YAML. Again does nothing.

    The scripts copy these functions when they are imported, so this comes right after `utils.general` is.
    """
    hooks = Hooks()
    for name, around in (("check_file", _check_file), ("check_dataset", _check_dataset)):
        if hasattr(general, name):
            hooks.wrap(general, name, around)


@contextmanager
def _started_from(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """`sys.argv` and `sys.path` as Python sets them for a script, for the duration of the block."""
    argv, folders = sys.argv[:], sys.path[:]
    sys.argv[:] = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = argv, folders


def _named_in_full(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the model and the data, where they are found from here, have absolute paths."""
    result = []
    for previous, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=") if argument.startswith("--") else (previous, "", argument)
        if name in ("--model", "--data") and Path(value).exists() and value:
            argument = f"{name}={Path(value).resolve()}" if equals else str(Path(value).resolve())
        result.append(argument)
    return result


def _check_file(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(find_yaml(file), *args, **kwargs)
    except AssertionError as error:  # how a tree says that a file is missing, ambiguous or of another type
        raise HostError(f"{error}; accepted: a path, or the name of a file of the tree or of yolorep") from None


def _check_dataset(original: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    given = data
    if isinstance(data, (str, Path)) and Path(data).suffix in (".yaml", ".yml"):
        data = _beside(Path(data))
    try:
        return original(data, False)  # autodownload
    except Exception as error:
        if "Dataset not found" not in str(error):
            raise
        where = data["path"] if isinstance(data, dict) else "the tree"
        raise HostError(f"{given}: no images in {where}, and nothing is downloaded; check path, train, val") from None


def _beside(file: Path) -> dict[str, Any]:
    """The contents of a data YAML; where it has no `path:`, the folder that it is in."""
    content = read_yaml(file, "a data YAML: accepted is a mapping with train, val and names")
    return content if content.get("path") else {**content, "path": str(file.resolve().parent)}
