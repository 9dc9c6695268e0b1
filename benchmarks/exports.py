"""Export a rep model with its host's exporter, and run the file with the runtime of its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import yolorep
from benchmarks.roundtrip import SIDE, generator, randomize_, relative
from yolorep.errors import first_line
from yolorep.hosts.ultralytics.build import quiet
from yolorep.stock_layers import rep_blocks

Export = Callable[[nn.Module, str, Tensor], Any]

NOT_RUN_HERE = {"coreml": "converted; runs only on macOS"}
# By default OpenVINO computes in bfloat16 on processors that support it.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
# When exported, these heads enlarge their maps and may return the class only.
DENSE_HEADS = ("Depth", "SemanticSegment")


@torch.no_grad()
def parity(stock: nn.Module, form: str, export: Export) -> float | str:
    """Return the largest relative error of the exported file against the rep model run in float64, or a reason.

    The exported model is `stock` expanded, with random branches. form: the host's name of an export format. export:
    writes the file and runs it, or returns the reason why it cannot.
    """
    image = torch.rand(1, 3, SIDE, SIDE, generator=generator())
    model = yolorep.expand(randomize_(stock.eval()))
    for name in rep_blocks(model):
        randomize_(model.get_submodule(name))
    expected = outputs(reference(model, form)(image.double()))
    with working_folder(), quiet():
        try:
            answer = export(model, form, image)
        except Exception as error:  # of any of a dozen converters
            return f"{type(error).__name__}: {first_line(error)}"
    if isinstance(answer, str):
        return answer
    got = outputs(answer)
    if not got:
        return "the file has no output"
    if any(a.shape != b.shape for a, b in zip(expected, got, strict=False)):
        return "the exporter gives another output than the model in torch does: not compared"
    if not got[0].is_floating_point():
        return f"a map of classes, in which {int((got[0] != expected[0]).sum())} of {got[0].numel()} pixels differ"
    return max(relative(a, b) for a, b in zip(expected, got, strict=False))


def of_ultralytics(yolo: Any) -> Export:
    """Return the exporter of ultralytics. yolo: `YOLO` around the stock model."""

    def export(model: nn.Module, form: str, image: Tensor) -> Any:
        from ultralytics.nn.autobackend import AutoBackend

        yolo.model = model
        file = Path(yolo.export(format=form, imgsz=SIDE, device="cpu", verbose=False)).absolute()
        if form in NOT_RUN_HERE:
            return NOT_RUN_HERE[form]
        if form == "openvino":
            return in_openvino(file, image)
        return AutoBackend(str(file), device=image.device, fuse=False)(image)

    return export


def of_tree(model: nn.Module, form: str, image: Tensor) -> Any:
    """Run the `export.py` of a YOLOv5 tree, which must be importable, on a checkpoint of the model."""
    import export
    from models.common import DetectMultiBackend

    if form not in set(export.export_formats()["Argument"]):
        return "the host has no such format"
    weights = Path("rep.pt")
    torch.save({"model": model}, weights)
    files = export.run(weights=weights, imgsz=(SIDE, SIDE), include=(form,), device="cpu")
    if not files:
        return "export.py wrote no file"
    if form in NOT_RUN_HERE:
        return NOT_RUN_HERE[form]
    file = Path(files[0])
    if form == "openvino":
        return in_openvino(file, image)
    return DetectMultiBackend(file, device=image.device)(image)


def in_openvino(file: Path, image: Tensor) -> list[Tensor]:
    """Return the outputs of an exported file or folder, computed in float32 on every processor."""
    import openvino

    (xml,) = file.glob("*.xml") if file.is_dir() else (file,)
    compiled = openvino.Core().compile_model(xml, "CPU", FLOAT32)
    return [torch.from_numpy(value) for value in compiled(image.numpy()).values()]


def reference(model: nn.Module, form: str) -> Any:
    """Return a float64 copy with the outputs of an exported file: boxes before NMS, maps at the size of the image."""
    copy: Any = deepcopy(model).double()
    if hasattr(copy, "end2end"):
        copy.end2end = False
    for head in copy.modules():
        if type(head).__name__ in DENSE_HEADS:
            head.export, head.format = True, form
    return copy


def outputs(nest: Any) -> list[Tensor]:
    """Return the output tensors in order; a torch model returns more tensors after the exported file's."""
    return [torch.as_tensor(leaf) for leaf in tree_leaves(nest) if hasattr(leaf, "shape")]


@contextmanager
def working_folder() -> Iterator[None]:
    """Change to a temporary working directory, where the exporter leaves its files."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
