"""What a backend is asked to run, and what it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Images = Tensor  # (batch, channels, height, width), float32 in [0, 1], contiguous, on the CPU
Run = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """What a backend is asked to run.

    model: returns tensors, float32 on the CPU in evaluation mode. images: the batch that is timed. calibration: images
    for INT8, (n, channels, height, width). device: where to run. threads: of a CPU. folder: for exported files, which
    backends share.
    """

    model: nn.Module
    images: Images
    calibration: Images
    device: torch.device
    threads: int
    folder: Path


@dataclass(frozen=True)
class Running:
    """A model that is ready to run.

    call: runs the network on `Job.images`; its result is what `outputs` takes. outputs: result → tensors on the CPU.
    load: replaces the images, of the same shape. file: the exported file or folder, if there is one.
    """

    call: Run
    outputs: Callable[[Any], list[Tensor]]
    load: Callable[[Images], None]
    file: Path | None = None


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    precision: of the arithmetic. needs: modules that must be installed. install: the command that installs them.
    devices: device types on which it runs. every_form: whether the unfused and the stock form are timed by default.
    """

    name: str
    start: Callable[[Job], Running]
    precision: str = "float32"
    needs: tuple[str, ...] = ()
    install: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    every_form: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Return why this backend cannot run here, with the install command, or None."""
        if device.type not in self.devices:
            return f"runs only on {' and '.join(self.devices)}"
        absent = [name for name in self.needs if find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed: {self.install}"
        if self.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            return f"{torch.cuda.get_device_name(device)} has no bfloat16"
        return None


class Predictions(nn.Module):
    """Only the tensors that a user of the model needs: a detector's decoded predictions, else all outputs."""

    def __init__(self, model: nn.Module, *, first: bool) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, x: Tensor) -> Any:
        leaves = [leaf for leaf in tree_leaves(self.model(x)) if isinstance(leaf, Tensor)]
        return leaves[0] if self.first else tuple(leaves)


def tensors(result: Any) -> list[Tensor]:
    """Return the outputs of any backend as float32 tensors on the CPU."""
    leaves = [leaf for leaf in tree_leaves(result) if hasattr(leaf, "shape")]
    return [torch.as_tensor(leaf).detach().float().cpu().clone() for leaf in leaves]


def copy_(x: Tensor, images: Images) -> None:
    """Put other images into the tensor that is run."""
    x.copy_(images)


def array(images: Images) -> Any:
    """Return images as an array of their own, which a runtime may keep."""
    return np.ascontiguousarray(images.numpy()).copy()
