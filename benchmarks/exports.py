"""A rep model given to ultralytics' exporter, and the file that comes out run by the runtime that it is made for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from roundtrip import SIDE, generator, randomize_, relative
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import yolorep
from yolorep.errors import first_line
from yolorep.hosts.build import quiet
from yolorep.selection import rep_blocks

NOT_RUN_HERE = {"coreml": "converted; runs on macOS alone"}
# OpenVINO computes in bfloat16 on processors that have it, unless it is asked not to.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@torch.no_grad()
def parity(yolo: Any, form: str) -> float | str:
    """The largest relative error of the exported file's outputs against the rep model's, run in float64.

    yolo: ultralytics' `YOLO` around a stock model; what is exported is that model expanded, with random branches.
    form: ultralytics' name of an export format. Where there is no figure, the result says why.
    """
    image = torch.rand(1, 3, SIDE, SIDE, generator=generator())
    model = yolorep.expand(randomize_(yolo.model.eval()))
    for name in rep_blocks(model):
        randomize_(model.get_submodule(name))
    yolo.model = model
    expected = outputs(reference(model)(image.double()))
    with working_folder(), quiet():
        try:
            file = yolo.export(format=form, imgsz=SIDE, device="cpu", verbose=False)
            if form in NOT_RUN_HERE:
                return NOT_RUN_HERE[form]
            got = outputs(run(Path(file).absolute(), form, image))
        except Exception as error:  # of any of a dozen converters
            return f"{type(error).__name__}: {first_line(error)}"
    if not got:
        return "the file has no output of real numbers: not compared"
    if any(a.shape != b.shape for a, b in zip(expected, got, strict=False)):
        return "the exporter gives another output than the model in torch does: not compared"
    return max(relative(a, b) for a, b in zip(expected, got, strict=False))


def reference(model: nn.Module) -> Any:
    """A copy in float64, which answers as exported files do: by the head that takes several boxes an object."""
    copy: Any = deepcopy(model).double()
    if hasattr(copy, "end2end"):
        copy.end2end = False
    return copy


def run(file: Path, form: str, image: Tensor) -> Any:
    """The outputs of an exported file."""
    if form == "openvino":
        import openvino

        (xml,) = file.glob("*.xml")
        compiled = openvino.Core().compile_model(xml, "CPU", FLOAT32)
        return [torch.from_numpy(value) for value in compiled(image.numpy()).values()]
    from ultralytics.nn.autobackend import AutoBackend

    return AutoBackend(str(file), device=torch.device("cpu"), fuse=False)(image)


def outputs(nest: Any) -> list[Tensor]:
    """The tensors that an exported model gives, first to last; a model in torch has more after them."""
    leaves = [torch.as_tensor(leaf) for leaf in tree_leaves(nest) if hasattr(leaf, "shape")]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


@contextmanager
def working_folder() -> Iterator[None]:
    """A temporary working directory, where the exporter leaves its files."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
