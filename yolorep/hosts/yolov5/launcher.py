"""Run the scripts of an unmodified YOLOv5 tree in this process, with rep models and shipped names known to them."""

from __future__ import annotations

import builtins
import inspect
import logging
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from urllib.error import URLError

import wrapt

from yolorep import plugins
from yolorep.errors import HostError, YolorepError, first_line
from yolorep.hosts import data_downloads
from yolorep.hosts.build_faults import building
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.needs import install_line, missing_file, needed
from yolorep.hosts.offline import guard_hosts
from yolorep.hosts.run_folders import cleared_when_refused, noted
from yolorep.hosts.shared_hooks import DATA_KEYS, read_yaml
from yolorep.hosts.shipped import find_yaml
from yolorep.hosts.yolov5 import arguments as given
from yolorep.hosts.yolov5 import old_trees
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.hosts.yolov5.training_hooks import announcing_at_the_end, forget_options, take_options
from yolorep.hosts.yolov5.tree import find_script, find_tree

LEAVES = "classify/train.py"  # a script that changes to the tree's folder before it looks for its model and data
FAILED, DONE = "export failure", "export success"  # what export.py of every tree logs; either way it exits with 0
ALL_FORMATS = "models/export.py"  # the export script of v5.0, which takes no list of formats and tries all


class MissingFileError(HostError, AssertionError):
    """A file that a tree does not find. The tree raises AssertionError, and may catch it."""


def run_script(script: str, arguments: Sequence[str], repo: Path | None = None) -> None:
    """Run `script` of a YOLOv5 tree as `python script arguments` would, from the user's working directory.

    script: relative to the tree, such as `train.py` or `segment/train.py`. repo: the tree; by default the working
    directory, then the published `yolov5` package. A `--cfg` may be the bare name of a YAML that yolorep ships, and a
    `--data` file without `path:` means the folders beside it.

    Raises:
        HostError: there is no tree or no such script, another tree is imported already, a file or a package is
            missing, or an export failed.
        CheckpointError: weights are damaged or hold no model.
        UsageError, BlockError: an option is not accepted.
    """
    tree = find_tree(repo)
    path = find_script(tree, script)
    script = path.relative_to(tree).as_posix()
    guard_hosts()
    if script in given.TRAINS:
        data_downloads.allow()
    arguments = plugins.from_flags(arguments)
    with ExitStack() as stack:
        stack.callback(forget_options)
        arguments = take_options(script, arguments)
        given.check(script, arguments, tree)
        if script == LEAVES:
            arguments = _named_in_full(arguments)
        if old_trees.reads_data_itself(tree):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="yolorep-")))
            arguments = _with_absolute_data(arguments, folder)
        stack.enter_context(_started_from(path, arguments))
        stack.enter_context(cleared_when_refused())
        stack.enter_context(_in_one_sentence(script, tree))
        make_runnable(tree)
        for name in ("utils.general", "yolov5.utils.general"):
            wrapt.register_post_import_hook(teach_files, name)
        stack.enter_context(announcing_at_the_end())
        _run(path, script)


def teach_files(general: ModuleType) -> None:
    """Let a tree's `utils.general` find shipped YAMLs, and data sets beside their YAML. A second call does nothing.

    The folder that it chooses for a run is noted, so that it can be removed.

    The scripts copy these functions when they are imported, so this comes right after `utils.general` is.
    """
    hooks = Hooks()
    for name, around in (("check_file", _check_file), ("check_dataset", _check_dataset), ("increment_path", noted)):
        if hasattr(general, name):
            hooks.wrap(general, name, around)


def _run(path: Path, script: str) -> None:
    """Run a script; an export that fails ends in HostError instead of exit code 0.

    Trees from v6.1 on log a failure, older ones print it.
    """
    exports = path.name == "export.py"
    failures: list[str] = []
    successes: list[str] = []

    def note(text: str) -> None:
        for mark, found in ((FAILED, failures), (DONE, successes)):
            if exports and mark in text:
                found.append(" ".join(text.split()))

    def say(*parts: Any, **options: Any) -> None:
        note(" ".join(map(str, parts)))
        builtins.print(*parts, **options)

    def look(record: logging.LogRecord) -> bool:
        note(record.getMessage())
        return True

    # A filter, as v7.0 and the published package replace the handlers of their logger when `utils.general` is imported.
    loggers = [logging.getLogger(name) for name in ("yolov5", "ultralytics")]
    for logger in loggers:
        logger.addFilter(look)
    try:
        runpy.run_path(str(path), init_globals={"print": say} if exports else None, run_name="__main__")
    finally:
        for logger in loggers:
            logger.removeFilter(look)
    if failures and not (script == ALL_FORMATS and successes):
        raise HostError(_export_failure(failures[0]))


def _export_failure(text: str) -> str:
    _, missing, module = text.partition("No module named ")
    if missing:
        name = module.strip("'").partition(".")[0]
        return f"export needs {name}, which is not installed: {install_line(name)}"
    return text


@contextmanager
def _in_one_sentence(script: str, tree: Path) -> Iterator[None]:
    """Turn a script's errors about files, packages, arguments and the network into HostError."""
    try:
        with building():
            yield
    except YolorepError:
        raise
    except ModuleNotFoundError as error:
        raise HostError(f"{script} needs {needed(error, tree / 'requirements.txt')}") from None
    except FileNotFoundError as error:
        raise HostError(missing_file(error)) from None
    except (ConnectionError, URLError) as error:
        raise HostError(first_line(error)) from None
    except AttributeError as error:
        if not str(error).startswith("Can't get attribute"):  # by an unpickler
            raise
        raise HostError(f"the checkpoint needs a layer that this tree does not have: {error}") from None
    except UnpicklingError as error:
        raise HostError(
            f"{script}: a file is not of the kind that this tree reads ({first_line(error)}); "
            "if it is the labels' *.cache, written by another version, remove it"
        ) from None
    except (AssertionError, NotImplementedError) as error:  # how a tree reports wrong arguments and data
        if not str(error):
            raise
        raise HostError(first_line(error)) from None
    except Exception as error:
        if type(error) is not Exception:  # a tree raises a plain Exception where it refuses something
            raise
        raise HostError(first_line(error)) from None


@contextmanager
def _started_from(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Set `sys.argv` and `sys.path` as Python does for a script, for the duration of the block."""
    argv, folders = sys.argv[:], sys.path[:]
    sys.argv[:] = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = argv, folders


def _named_in_full(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the model and the data, where they are found from here, have absolute paths."""
    return given.with_values(
        arguments, ("--model", "--data"), lambda value: str(Path(value).resolve()) if Path(value).exists() else value
    )


def _with_absolute_data(arguments: Sequence[str], folder: Path) -> list[str]:
    """Arguments that name, in place of a data YAML, a copy in `folder` with absolute paths to the images."""
    return given.with_values(
        arguments,
        ("--data",),
        lambda value: str(old_trees.with_absolute_paths(Path(value), folder)) if Path(value).is_file() else value,
    )


def _check_file(original: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(find_yaml(file), *args, **kwargs)
    except AssertionError as error:  # how a tree says that a file is missing, ambiguous or of another type
        tree = Path(inspect.getfile(original)).parents[1]
        found = [
            tree / str(file),
            *(path for folder in ("data", "models") for path in (tree / folder).rglob(str(file))),
        ]
        found = [path for path in found if path.is_file()]
        if len(found) == 1:  # v5.0 looks in the working directory only
            return str(found[0])
        raise MissingFileError(f"{error}; accepted: a path, or the name of a file of the tree or of yolorep") from None


def _check_dataset(original: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    """A tree's `check_dataset`, with the folders beside a data YAML, and `hosts.data_downloads`' rule for downloads."""
    named = data
    if isinstance(data, (str, Path)) and Path(data).suffix in (".yaml", ".yml"):
        data = _beside(Path(data))
    if isinstance(data, dict) and "autodownload" not in inspect.signature(original).parameters:  # v5.0
        return original(data if _may_download(named, data) else {**data, "download": None})
    try:
        return original(deepcopy(data), False)
    except Exception as error:
        if "Dataset not found" not in str(error):
            raise
        if isinstance(data, dict) and _may_download(named, data):
            data_downloads.report(named, data["download"], "YOLOv5")
            return original(data, True)
        where = data.get("path", "the tree") if isinstance(data, dict) else "the tree"
        raise HostError(f"{named}: no images in {where}; check path, train, val") from None


def _may_download(named: Any, data: dict[str, Any]) -> bool:
    return bool(data.get("download")) and data_downloads.may_run(named, data["download"])


def _beside(file: Path) -> dict[str, Any]:
    """The contents of a data YAML; where it has no `path:`, the folder that it is in."""
    content = read_yaml(file, DATA_KEYS)
    content = content if content.get("path") else {**content, "path": str(file.resolve().parent)}
    names = content.get("names")
    return {"nc": len(names), **content} if isinstance(names, (dict, list)) else content  # trees before v6.2 ask nc
