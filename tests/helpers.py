"""What tests share: random batch norms, relative errors, fresh processes, a generated data set."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.fork_server import ROOT as ROOT
from tests.fork_server import execute
from yolorep import numerics
from yolorep.numerics import TOLERANCE

Module = TypeVar("Module", bound=nn.Module)


def randomize_(module: Module, seed: int = 0) -> Module:
    """Give every batch norm in `module` random statistics, affine (negative gammas too) and an odd eps."""
    random = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return (torch.rand(like.shape, generator=random) * (high - low) + low).to(like)

    for index, norm in enumerate(m for m in module.modules() if isinstance(m, _BatchNorm)):
        norm.eps = (1e-3, 3e-5, 7e-2)[index % 3]
        with torch.no_grad():
            if norm.affine:
                signs = torch.where(uniform(norm.weight, 0, 1) < 0.3, -1.0, 1.0)
                norm.weight.copy_(uniform(norm.weight, 0.3, 1.5) * signs)
                norm.bias.copy_(uniform(norm.bias, -1, 1))
            if norm.track_running_stats:
                norm.running_mean.copy_(uniform(norm.running_mean, -0.5, 0.5))
                norm.running_var.copy_(uniform(norm.running_var, 0.3, 2))
    return module


def write_small(file: Path, **more: Any) -> Path:
    """Write the model YAML of a detector of few layers, whose training takes moments. more: keys beside its rows."""
    backbone = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C2f", [32, True]]]
    backbone += [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [64, 3, 2]]]
    rows = {"nc": 2, "backbone": backbone, "head": [[[3, 4], 1, "Detect", ["nc"]]]}
    file.write_text(json.dumps({**rows, **more}))
    return file


def relative_error(expected: Tensor, got: Tensor) -> float:
    """`numerics.relative_error` of two tensors that must have one shape."""
    assert expected.shape == got.shape, f"{tuple(expected.shape)} became {tuple(got.shape)}"
    return numerics.relative_error(expected, got)


def assert_same(expected: Tensor, got: Tensor) -> None:
    """Equal within the tolerance of their dtype, relative to the largest value expected."""
    assert expected.dtype == got.dtype
    error = relative_error(expected, got)
    assert error <= TOLERANCE[expected.dtype], f"relative error {error:.2e}"


def tensors(output: Any) -> list[Tensor]:
    """Every tensor in what a host's model returns, nested as it is."""
    if isinstance(output, Tensor):
        return [output]
    inner = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in inner for tensor in tensors(part)]


def assert_same_outputs(expected: Any, got: Any) -> None:
    """`assert_same` for each tensor of two outputs of a host's model."""
    expected, got = tensors(expected), tensors(got)
    assert len(expected) == len(got) > 0
    for one, other in zip(expected, got, strict=True):
        assert_same(one, other)


def sure_(model: nn.Module) -> nn.Module:
    """Make a host's model find things: its class scores become about one half, where a fresh head says nearly none."""
    for layer in model.model[-1].modules():  # type: ignore[index, union-attr]
        bias = getattr(layer, "bias", None)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and bias is not None and len(bias) == len(model.names):  # type: ignore[arg-type]
            nn.init.zeros_(bias)
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a failed or copying operation must leave alone."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(name, id(m), type(m), m.training) for name, m in model.named_modules()]
    return {"state": state, "modules": modules, "yaml": copy.deepcopy(getattr(model, "yaml", None))}


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    assert before["modules"] == after["modules"]
    assert before["yaml"] == after["yaml"]
    assert all(torch.equal(value, after["state"][key]) for key, value in before["state"].items())


def run_python(code: str, *arguments: object, cwd: Path | None = None, fresh: bool = False, **env: str) -> str:
    """What `code` prints in a process of its own that finds the package under test; a failure shows its stderr."""
    done = execute(code, arguments, env, cwd, timeout=300, fresh=fresh)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def write_rectangles(folder: Path, train: int = 8, val: int = 4, size: int = 64, seed: int = 0) -> Path:
    """Generate a detection data set in YOLO layout with the classes 'red' and 'blue', and return its `data.yaml`."""
    import cv2

    random = np.random.default_rng(seed)
    colours = ((40, 40, 220), (220, 80, 40))  # BGR
    for split, count in (("train", train), ("val", val)):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            image = random.integers(90, 130, (size, size, 3), dtype=np.uint8)
            lines = []
            for kind, colour in enumerate(colours):
                width, height = random.integers(size // 4, size // 2, 2)
                left, top = random.integers(0, size - width), random.integers(0, size - height)
                image[top : top + height, left : left + width] = colour
                box = (left + width / 2, top + height / 2, width, height)
                lines.append(" ".join([str(kind), *(f"{value / size:.6f}" for value in box)]))
            cv2.imwrite(str(images / f"{index}.png"), image)
            (labels / f"{index}.txt").write_text("\n".join(lines) + "\n")
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnc: 2\nnames: [red, blue]\n")
    return data
