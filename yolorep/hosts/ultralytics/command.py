"""Run a mode of the `yolo` command in this process, with yolorep's options and one sentence for a user's mistake."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any

from yolorep import plugins
from yolorep.console import say
from yolorep.errors import HostError, UsageError, YolorepError, first_line
from yolorep.host import ULTRALYTICS
from yolorep.hosts import data_downloads, train_options
from yolorep.hosts.build_faults import building
from yolorep.hosts.checkpoints import check_model_file, check_resumes
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.model_files import SUFFIXES, check_model_yaml
from yolorep.hosts.needs import missing_file, needed
from yolorep.hosts.offline import guard_hosts
from yolorep.hosts.run_folders import cleared_when_refused, noted
from yolorep.hosts.shared_hooks import DATA_KEYS, read_yaml
from yolorep.hosts.ultralytics import run_record, tuning
from yolorep.hosts.ultralytics.cpu_threads import use_all_cores
from yolorep.paths import is_dir, is_file

TUNE = "tune"
TRAINS = ("train", TUNE)
TEXTS = ("format", "distill_model")
INDICES = ("classes", "embed")  # arguments that are lists of indices
TAKES_DATA = (*TRAINS, "val", "benchmark")
# Names of ultralytics' checkpoints that hold weights without a model: it builds the model from the name.
WITHOUT_MODEL = ("sam_", "sam2", "sam3", "mobile_sam", "yolo_nas")
ENGINES = tuple(f"ultralytics.engine.{name}" for name in ("predictor", "trainer", "validator"))  # call get_save_dir
# Modules of ultralytics whose errors are about an argument.
ABOUT_ARGUMENTS = (
    "ultralytics.cfg",
    "ultralytics.data.augment",
    "ultralytics.engine.exporter",
    "ultralytics.engine.model",
    "ultralytics.utils.checks",
    "ultralytics.utils.load",  # of a YAML
    "ultralytics.utils.torch_utils.select_device",
)


def run(mode: str, arguments: Sequence[str]) -> None:
    """Run `yolo MODE ARGUMENTS`. arguments: ARG=VALUE; in mode train also yolorep's own (`hosts.train_options`).

    Raises:
        UsageError, BlockError: an option of yolorep's is not accepted.
        CheckpointError: a file that is named is damaged, or holds no model.
        HostError: ultralytics refuses an argument, or misses a file, a server or a package.
    """
    guard_hosts()
    arguments = plugins.from_pairs(arguments)
    check_files(mode, arguments)
    rest, options = train_options.from_pairs(arguments)
    if mode == "train":
        _tell_replaced_run(rest)
    if mode == "train" and "rep" not in options:
        options = {**recorded_options(rest), **options}
    if options and mode != "train":
        raise UsageError(f"{next(iter(options))}= is an option of train; {mode} takes a rep checkpoint as it is")
    if mode in TRAINS:
        data_downloads.allow()
    with cleared_when_refused(), in_one_sentence(mode):
        _call([mode, *rest], options)


def recorded_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return yolorep's options in the `args.yaml` of an earlier run that `cfg=` names, so that it can be repeated."""
    files = [argument.partition("=")[2] for argument in arguments if argument.startswith("cfg=")]
    return run_record.read(Path(files[-1])) if files else {}


def _tell_replaced_run(arguments: Sequence[str]) -> None:
    """Say that a run replaces the one whose `args.yaml` is given, because the file names its folder."""
    pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    file = Path(pairs.get("cfg", ""))
    if "save_dir" in pairs or not is_file(file):
        return
    folder = read_yaml(file, "a file of arguments").get("save_dir")
    if isinstance(folder, str) and is_dir(Path(folder) / "weights"):
        say(f"{file} has save_dir: {folder}, so that this run replaces the one there; save_dir=FOLDER gives another")


def print_help() -> None:
    """Print the help of the `yolo` command."""
    guard_hosts()
    _call(["help"], {})


def check_files(mode: str, arguments: Sequence[str]) -> None:
    """Refuse checkpoints that the host would fail on, before it has made or written anything.

    Raises:
        CheckpointError: a file is damaged; `model=` holds no model of ultralytics.
        UsageError: `model=` is a checkpoint of a YOLOv5 tree.
    """
    pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    _check_values(mode, pairs)
    resumed = pairs.get("resume", "")
    for name, value in pairs.items():
        path = Path(value)
        if name == "data" and mode in TAKES_DATA:
            _check_data(path, mode)
        if name == "model":
            check_model_yaml(path, ULTRALYTICS)
        if path.suffix != ".pt":
            continue
        check_whole(path)
        if name == "resume" or (name == "model" and resumed.lower() == "true"):
            check_resumes(path)
        if name != "model" or not path.is_file() or path.name.lower().startswith(WITHOUT_MODEL):
            continue
        if check_model_file(path) == "yolov5":
            script = {"predict": "detect"}.get(mode, mode)
            raise UsageError(f"{path} is a checkpoint of a YOLOv5 tree; use `yolorep yolov5 {script}.py`")


def _check_values(mode: str, pairs: Mapping[str, str]) -> None:
    """Check the values that ultralytics takes as they are, and fails on where it uses them.

    Raises:
        UsageError: one is of another kind.
    """
    for name in INDICES:
        given = pairs.get(name, "")
        if given not in ("", "None") and not re.fullmatch(r"\d+|[\[(]\s*(\d+\s*,?\s*)*[\])]", given.strip()):
            raise UsageError(f"{name}={given} is not accepted; accepted: a number, or a list such as {name}=[0,2]")
    for name in TEXTS:
        if re.fullmatch(r"-?[\d.]+", pairs.get(name, "")):
            raise UsageError(f"{name}={pairs[name]} is not accepted; accepted: a name")
    if mode not in TRAINS and re.fullmatch(r"-\d+|0", pairs.get("batch", "")):
        raise UsageError(f"batch={pairs['batch']} is not accepted; accepted: 1 or more")


def _check_data(file: Path, mode: str) -> None:
    """Check a data YAML. Benchmark and tune pass over one that is missing, and end in a table of failures.

    Raises:
        HostError: there is none, or it has no images to train or validate with.
        UsageError: the system does not let the path be opened.
    """
    from ultralytics.utils.checks import check_file

    if file.suffix.lower() not in SUFFIXES or "://" in str(file):
        return
    if mode in ("benchmark", TUNE) and not is_file(file) and not check_file(str(file), hard=False):
        raise HostError(
            f"{file} does not exist; accepted: {DATA_KEYS.partition(': ')[0]} of yours, or one of ultralytics'"
        )
    if is_file(file):
        content = read_yaml(file, DATA_KEYS)
        missing = [
            key for key in ("train", "val") if not content.get(key) and not (key == "val" and "validation" in content)
        ]
        if missing:
            raise HostError(f"{file} has no {missing[0]}; it is not {DATA_KEYS}")


@contextmanager
def in_one_sentence(mode: str) -> Iterator[None]:
    """Turn ultralytics' errors about arguments, files, packages and the network into HostError."""
    try:
        with building():
            yield
    except YolorepError:
        raise
    except ModuleNotFoundError as error:
        raise HostError(f"{mode} needs {needed(error)}") from None
    except FileNotFoundError as error:
        raise HostError(missing_file(error)) from None
    except (SyntaxError, ConnectionError, NotImplementedError) as error:
        raise HostError(first_line(error)) from None
    except RuntimeError as error:
        if not str(error).startswith("Dataset"):  # the host's prefix for faults of a data set
            raise
        raise HostError(first_line(error)) from None
    except (AssertionError, TypeError, ValueError) as error:
        if not str(error) or not _about_arguments(error):
            raise
        raise HostError(first_line(error)) from None


def _about_arguments(error: Exception) -> bool:
    frame = [frame for frame, _ in walk_tb(error.__traceback__)][-1]
    place = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    return place.startswith(ABOUT_ARGUMENTS) or (isinstance(error, AssertionError) and place.startswith("ultralytics."))


def _call(arguments: Sequence[str], options: dict[str, object]) -> None:
    use_all_cores()
    from ultralytics.cfg import entrypoint

    from yolorep.hosts.ultralytics.training_hooks import options_of_command

    sys.argv[:] = ["yolo", *arguments]  # in place: ultralytics may hold the list already
    with options_of_command(options), _folders_noted():
        if arguments[0] == TUNE:
            tuning.tune(arguments[1:])
        else:
            entrypoint()


@contextmanager
def _folders_noted() -> Iterator[None]:
    """Have `run_folders` note which folder each run chooses."""
    hooks = Hooks()
    for engine in ENGINES:
        hooks.wrap(import_module(engine), "get_save_dir", noted)
    try:
        yield
    finally:
        hooks.remove()
