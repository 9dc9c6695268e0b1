"""Run a mode of the `yolo` command in this process, with yolorep's options and one sentence for a user's mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from yolorep.errors import HostError, UsageError, first_line
from yolorep.hosts import data_downloads, train_options
from yolorep.hosts.checkpoints import check_model_file, check_resumes
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.needs import missing_file, needed
from yolorep.hosts.offline import guard_hosts

TRAINS = ("train", "tune")
# Names of ultralytics' checkpoints that hold weights without a model: it builds the model from the name.
WITHOUT_MODEL = ("sam_", "sam2", "sam3", "mobile_sam", "yolo_nas")
# Modules of ultralytics whose errors are about an argument.
ABOUT_ARGUMENTS = (
    "ultralytics.cfg",
    "ultralytics.engine.exporter",
    "ultralytics.engine.model",
    "ultralytics.utils.checks",
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
    check_files(mode, arguments)
    theirs, ours = train_options.from_pairs(arguments)
    if ours and mode != "train":
        raise UsageError(f"{next(iter(ours))}= is an option of train; {mode} takes a rep checkpoint as it is")
    if mode in TRAINS:
        data_downloads.allow()
    with in_one_sentence(mode):
        _call([mode, *theirs], ours)


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
    resumed = pairs.get("resume", "")
    for name, value in pairs.items():
        path = Path(value)
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


@contextmanager
def in_one_sentence(mode: str) -> Iterator[None]:
    """Turn ultralytics' errors about arguments, files, packages and the network into HostError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise HostError(f"{mode} needs {needed(error)}") from None
    except FileNotFoundError as error:
        raise HostError(missing_file(error)) from None
    except (SyntaxError, ConnectionError) as error:
        raise HostError(first_line(error)) from None
    except RuntimeError as error:
        if not str(error).startswith("Dataset"):  # how it wraps what is wrong with a data set
            raise
        raise HostError(first_line(error)) from None
    except (AssertionError, TypeError, ValueError, NotImplementedError) as error:
        if not str(error) or not _about_arguments(error):
            raise
        raise HostError(first_line(error)) from None


def _about_arguments(error: Exception) -> bool:
    frame = [frame for frame, _ in walk_tb(error.__traceback__)][-1]
    place = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    return place.startswith(ABOUT_ARGUMENTS) or (isinstance(error, AssertionError) and place.startswith("ultralytics."))


def _call(arguments: Sequence[str], options: dict[str, object]) -> None:
    from ultralytics.cfg import entrypoint

    from yolorep.hosts.ultralytics.training_hooks import options_of_command

    sys.argv[:] = ["yolo", *arguments]  # in place: ultralytics may hold the list already
    with options_of_command(options):
        entrypoint()
