"""Checkpoints of both hosts: read with the host that made them, written atomically and as plain as they were."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import safer
import torch
from torch import nn

from yolorep.errors import CheckpointError
from yolorep.hosts.offline import go_offline
from yolorep.hosts.yolov5.compat import tree_modules

YOLOV5_PACKAGES = ("models.", "yolov5.")
# Names of classes that tell other projects' checkpoints, some of which look like a YOLOv5 tree's.
OTHER_PROJECTS = {"yolov6.": "YOLOv6", "models.yolo.IDetect": "YOLOv7", "models.yolo.IAuxDetect": "YOLOv7"}
# Kept for resuming the run that wrote them; they belong to the model that is being replaced.
OF_THE_RUN = ("ema", "updates", "optimizer", "scaler")


@dataclass
class Checkpoint:
    """A checkpoint file in memory. model: float32, evaluation mode, the averaged (EMA) weights where there are any."""

    path: Path
    host: str
    content: dict[str, Any]
    model: nn.Module


def load(path: Path, repo: Path | None = None) -> Checkpoint:
    """Read a checkpoint of ultralytics or of a YOLOv5 tree. repo: the tree to read the latter with.

    Raises:
        CheckpointError: no such file, not a checkpoint with a model inside, or of another framework.
        HostError: the host that it needs is not there.
    """
    host = host_of(path)
    go_offline()
    experimental = tree_modules(repo, "models.experimental")[0] if host == "yolov5" else None
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{path} needs a class that is not here: {error}") from None
    content = content if isinstance(content, dict) else {"model": content}
    model = content.get("ema") or content.get("model")
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"{path} holds no model but {type(model).__name__}; accepted: a checkpoint of either host"
        )
    if experimental is not None:
        model = experimental.attempt_load(str(path), fuse=False)  # brings a model of an older tree up to date
    return Checkpoint(Path(path), host, content, model.float().eval())


def host_of(path: Path) -> str:
    """'ultralytics' or 'yolov5', told from the names in the file without running any of it.

    Raises:
        CheckpointError: no such file, not a PyTorch checkpoint, or a model of neither host.
    """
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder; accepted: a checkpoint file (.pt) of ultralytics or YOLOv5")
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; accepted: a checkpoint file (.pt) of ultralytics or YOLOv5")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, UnpicklingError):  # no zip file; a damaged one, in one of three ways
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint (a whole file written by torch.save in its zip format)"
        ) from None
    if any(name.startswith("ultralytics.nn.") for name in names):
        return "ultralytics"
    for prefix, project in OTHER_PROJECTS.items():
        if any(name.startswith(prefix) for name in names):
            raise CheckpointError(
                f"{path} is a checkpoint of {project}; accepted: one of ultralytics or YOLOv5. "
                f"In {project}'s own tree, load its model and call yolorep.deploy(model)"
            )
    if any(name.startswith(YOLOV5_PACKAGES) for name in names):
        return "yolov5"
    raise CheckpointError(f"{path} holds no model of ultralytics or YOLOv5")


def halved(model: nn.Module) -> nn.Module:
    """A copy with float16 values, as the hosts store them.

    Raises:
        CheckpointError: a value does not fit float16.
    """
    copy = deepcopy(model).half()
    wrong = [name for name, value in copy.state_dict().items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise CheckpointError(f"{wrong[0]} does not fit float16; write it without --half")
    return copy


def save(checkpoint: Checkpoint, model: nn.Module, out: Path) -> None:
    """Write `checkpoint` with `model` in place of its own; all of the file or none of it.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {key: None if key in OF_THE_RUN else value for key, value in checkpoint.content.items()}
    content["model"] = model
    # Of a name of its own: a temporary file that the library names is for its owner's eyes only, and so would `out` be.
    unfinished = out.with_name(f".{out.name}-{uuid4().hex}")
    try:
        with safer.open(out, "wb", temp_file=str(unfinished)) as file:  # all of the file or none of it
            torch.save(content, file)  # type: ignore[arg-type]
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from None


def check_target(source: Path, out: Path, *, overwrite: bool) -> None:
    """Raises:
    CheckpointError: `out` is a folder or is in none, would replace a file, or has a name that ultralytics takes.
    """
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder; choose the name of a file")
    if out.exists() and (not overwrite or out.resolve() == source.resolve()):
        raise CheckpointError(f"{out} exists; choose another name, or --overwrite (never for the input itself)")
    if not out.parent.is_dir():
        raise CheckpointError(f"{out.parent} is not a folder; create it first")
    if out.suffix != ".pt":
        raise CheckpointError(f"{out.name} must end in .pt, or the hosts will not load it")
    if re.fullmatch(r".*(yolov5[nsmlx]6?|yolov3(-tiny|-spp)?)\.pt", out.name):
        raise CheckpointError(
            f"{out.name} is a name that ultralytics replaces by a download ({out.stem}u.pt); choose another, "
            f"such as {out.stem}-deployed.pt"
        )
