"""Read and write the checkpoints of both hosts, each with the host that made it."""

from __future__ import annotations

import inspect
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from yolorep.atomic_files import written_whole
from yolorep.console import say_once
from yolorep.errors import CheckpointError
from yolorep.host import HOSTS, YOLOV5
from yolorep.hosts import restricted_pickle
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.needs import WHERE_CLASSES_ARE
from yolorep.hosts.offline import go_offline
from yolorep.hosts.suspended_fuse import unfused
from yolorep.hosts.yolov5.compat import tree_modules
from yolorep.hosts.yolov5.tree import find_tree
from yolorep.paths import exists, is_dir, is_file

# Prefixes of class names in checkpoints of other projects, some of which look like a YOLOv5 tree's.
OTHER_PROJECTS = {"yolov6.": "YOLOv6", "models.yolo.IDetect": "YOLOv7", "models.yolo.IAuxDetect": "YOLOv7"}
# Entries that the hosts store to resume a run, and their values once the run has ended. A checkpoint with
# another model in it must not be resumed: it would go on in the folder of the first run.
OF_THE_RUN: dict[str, Any] = {
    "ema": None,
    "updates": None,
    "optimizer": None,
    "scaler": None,
    "best_fitness": None,
    "epoch": -1,
}


@dataclass
class Checkpoint:
    """A checkpoint file in memory.

    model: float32, evaluation mode, the averaged (EMA) weights where there are any. dtype: what its values were stored
        in.
    """

    path: Path
    host: str
    content: dict[str, Any]
    model: nn.Module
    dtype: torch.dtype = torch.float32


def load(path: Path, repo: Path | None = None) -> Checkpoint:
    """Read a checkpoint of ultralytics or of a YOLOv5 tree. repo: the tree to read the latter with.

    The file may name layers and plain values only, unless it is trusted (`restricted_pickle.trusting`).

    Raises:
        CheckpointError: there is no such file; it is damaged, holds no model, or names something else.
        HostError: the host that it needs is not there.
    """
    path = Path(path)
    if repo is not None:
        find_tree(repo)  # of no use for a checkpoint of ultralytics, but a mistake in it is told all the same
    host = host_of(path)
    check_whole(path)
    go_offline()
    experimental = tree_modules(repo, "models.experimental")[0] if host == "yolov5" else None
    if experimental is not None:
        say_once(f"checkpoints of YOLOv5 are read with the tree {find_tree(repo)}")
    try:
        content = restricted_pickle.load(path)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{path} needs a class that is not here: {error}; {WHERE_CLASSES_ARE}") from None
    content = content if isinstance(content, dict) else {"model": content}
    model = content.get("ema") or content.get("model")
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"{path} holds no model but {type(model).__name__}; accepted: a checkpoint of either host"
        )
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype
    if experimental is not None:
        model = _up_to_date(experimental, path)
    return Checkpoint(path, host, content, model.float().eval(), dtype)


def _up_to_date(experimental: Any, path: Path) -> nn.Module:
    """A model of an older tree, as this tree's `attempt_load` repairs it; unfused."""
    if "fuse" in inspect.signature(experimental.attempt_load).parameters:
        return experimental.attempt_load(str(path), fuse=False)
    with unfused():  # v5.0
        return experimental.attempt_load(str(path))


def host_of(path: Path) -> str:
    """Return the name of a checkpoint's host from the names in the file, without running any of its code.

    Raises:
        CheckpointError: there is no such file, it is no PyTorch checkpoint, or holds a model of neither host.
        UsageError: the system does not let the path be opened.
    """
    path = Path(path)
    if is_dir(path):
        raise CheckpointError(f"{path} is a folder; accepted: a checkpoint file (.pt) of ultralytics or YOLOv5")
    if not is_file(path):
        raise CheckpointError(f"{path} does not exist; accepted: a checkpoint file (.pt) of ultralytics or YOLOv5")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, UnpicklingError):  # no zip file; a damaged one, in one of three ways
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint (a whole file written by torch.save in its zip format)"
        ) from None
    host = next((host for host in HOSTS if any(name.startswith(host.checkpoint_marks) for name in names)), None)
    for prefix, project in OTHER_PROJECTS.items() if host in (None, YOLOV5) else ():
        if any(name.startswith(prefix) for name in names):
            raise CheckpointError(
                f"{path} is a checkpoint of {project}; accepted: one of ultralytics or YOLOv5. "
                f"In {project}'s own tree, load its model and call yolorep.deploy(model)"
            )
    if host is None:
        raise CheckpointError(f"{path} holds no model of ultralytics or YOLOv5")
    return host.name


def check_model_file(path: Path) -> str:
    """Return the host of a file that the host reads itself, or '' for the file format of torch before 1.6.

    Raises:
        CheckpointError: as `host_of`.
    """
    with path.open("rb") as file:
        legacy = file.read(1) == b"\x80"
    return "" if legacy else host_of(path)


def check_resumes(path: Path) -> None:
    """Refuse to resume a run from a checkpoint of one that has ended, or that deploy or expand has written.

    Raises:
        CheckpointError: it is such a file, damaged, or not a checkpoint.
        UsageError: the system does not let the path be opened.
    """
    check_whole(path)
    if is_file(path):
        check_model_file(path)
    if is_file(path) and restricted_pickle.plain_values(path).get("epoch", -1) == -1:
        raise CheckpointError(
            f"{path} is of a run that has ended, or written by yolorep: there is nothing to resume; accepted: the "
            "last.pt of a run that was interrupted. To train it further, start a new run from it"
        )


def halved(model: nn.Module) -> nn.Module:
    """Return a copy with float16 values, as the hosts store them.

    Raises:
        CheckpointError: a value does not fit float16.
    """
    copy = deepcopy(model).half()
    wrong = [name for name, value in copy.state_dict().items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise CheckpointError(f"{wrong[0]} does not fit float16; write it without --half")
    return copy


def save(checkpoint: Checkpoint, model: nn.Module, out: Path, *, overwrite: bool = False) -> None:
    """Write `checkpoint` with `model` in place of its own, and as a run that has ended; all of the file or none of it.

    overwrite: replace `out`, even where it appears only now.

    Raises:
        CheckpointError: the file cannot be written, or exists.
    """
    content = {key: OF_THE_RUN.get(key, value) for key, value in checkpoint.content.items()}
    content["model"] = model
    try:
        with written_whole(out, "wb", overwrite=overwrite) as file:
            torch.save(content, file)
    except FileExistsError:
        raise CheckpointError(f"{out} exists; choose another name, or --overwrite") from None
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a disk that fills
        if isinstance(error, RuntimeError) and not isinstance(error.__context__, OSError):
            raise
        cause = error if isinstance(error, OSError) else error.__context__
        raise CheckpointError(f"{out} cannot be written: {getattr(cause, 'strerror', None) or cause}") from None


def check_target(source: Path, out: Path, *, overwrite: bool) -> None:
    """Check that `out` can be written, before anything is computed for it.

    Raises:
        CheckpointError: `out` is a folder or is in none, would replace a file, or has a name that ultralytics takes.
        UsageError: the system does not let the path be opened.
    """
    if is_dir(out):
        raise CheckpointError(f"{out} is a folder; choose the name of a file")
    if exists(out) and (not overwrite or (exists(source) and out.samefile(source))):
        raise CheckpointError(f"{out} exists; choose another name, or --overwrite (never for the input itself)")
    if not is_dir(out.parent):
        raise CheckpointError(f"{out.parent} is not a folder; create it first")
    if out.suffix != ".pt":
        raise CheckpointError(f"{out.name} must end in .pt, or the hosts will not load it")
    if re.fullmatch(r".*(yolov5[nsmlx]6?|yolov3(-tiny|-spp)?)\.pt", out.name):
        raise CheckpointError(
            f"{out.name} is a name that ultralytics replaces by a download ({out.stem}u.pt); choose another, "
            f"such as {out.stem}-deployed.pt"
        )
