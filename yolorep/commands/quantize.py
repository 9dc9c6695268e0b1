"""Quantize a checkpoint to 8 bits for ONNX Runtime or OpenVINO, and measure what that costs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rich.console import Console
from torch import nn

from yolorep.calibration import FEW, calibration_files, check_validation, class_names, letterboxed
from yolorep.commands.deploy import deploy_file
from yolorep.errors import UsageError
from yolorep.foreign import foreign_blocks
from yolorep.host import ULTRALYTICS, own_blocks
from yolorep.hosts import checkpoints, evaluate
from yolorep.paths import exists
from yolorep.quantization.finetuning import finetuned_onnx
from yolorep.quantization.graph import float_nodes
from yolorep.quantization.int8 import openvino_folder
from yolorep.quantization.report import QuantizationReport
from yolorep.quantization.schemes import chosen_schemes
from yolorep.quantization.trials import Trials
from yolorep.stock_layers import rep_blocks

LARGEST_DROP = 100
OBSERVED = 32  # calibration images on which the ranges of fine-tuning begin
TARGETS = {"onnx": ".onnx", "openvino": "_openvino_model"}
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Request:
    """A call of the command.

    imgsz: pixels, by default 640. schemes: names; by default, the target's. images: number of training images for the
    calibration of ranges. max_drop: tolerated loss of mAP50-95 in points. repo: the tree of a YOLOv5 checkpoint.
    finetune: epochs of fine-tuning with 8-bit rounding, by ultralytics' trainer.
    """

    source: Path
    out: Path
    data: Path
    imgsz: int | None = None
    schemes: tuple[str, ...] = ()
    images: int = 300
    max_drop: float = 0.5
    overwrite: bool = False
    repo: Path | None = None
    finetune: int = 0

    @property
    def target(self) -> str:
        """The runtime, "onnx" or "openvino", by the name of the output.

        Raises:
            UsageError: the name is of neither.
        """
        for name, ending in TARGETS.items():
            if self.out.name.endswith(ending):
                return name
        raise UsageError(f"{self.out} must end in .onnx, or in _openvino_model for an OpenVINO folder")


def quantize_file(request: Request, console: Console) -> bool:
    """Write the 8-bit model and `OUT.json` with the report; return whether the loss is within tolerance.

    Every scheme is quantized and validated on the data set with the host's own validation. If no scheme is within
    tolerance, the 1, then 2, 4 and 8 layers with the largest errors are kept in float. With `finetune`, every scheme is
    also tried on a copy that is fine-tuned with 8-bit rounding. Then all models and the float32
    model are timed in turns, and the fastest one within tolerance is written. If there is none, the most accurate one
    is written, and the result is False.

    Raises:
        UsageError: the output, a scheme, a package or the data set is not accepted; nothing is written.
        CheckpointError, HostError: the checkpoint cannot be read or exported.
    """
    schemes = chosen_schemes(request.schemes, request.target)
    _check_output(request)
    files = calibration_files(request.data, request.images, lambda note: console.print(f"note: {note}", markup=False))
    check_validation(request.data)
    with TemporaryDirectory() as folder:
        trials = _trials(request, files, Path(folder), console)
        report = trials.run(schemes, request.max_drop)
        _write(trials.paths[report.chosen.label], report, request.out)
    _tell(request, report, console)
    return report.within(report.chosen)


def _trials(request: Request, files: Sequence[Path], folder: Path, console: Console) -> Trials:
    """Deploy and export the checkpoint, and say what the ranges are calibrated on.

    Raises:
        UsageError: as `_model`.
    """
    import onnx

    source, host, task = _model(request, folder, console)
    imgsz = request.imgsz or 640

    def validate(path: Path) -> dict[str, float]:
        return evaluate.exported_figures(path, host, task, request.data, imgsz=imgsz, repo=request.repo)

    note = "" if len(files) >= FEW else f"; ranges are more reliable with {FEW} or more"
    console.print(f"calibrating on {len(files)} images of {request.data}{note}", markup=False)
    exporter = import_module(f"yolorep.hosts.{host}.exporter")
    float_onnx = exporter.export_onnx(source, folder, imgsz, request.repo)
    graph = onnx.load(float_onnx)
    name = graph.graph.input[0].name

    def in_runtime(file: Path) -> Path:
        return file if request.target == "onnx" else openvino_folder(file, folder, exporter.SIDECAR)

    return Trials(
        float_onnx,
        in_runtime,
        float_nodes(graph),
        lambda: ({name: letterboxed(file, imgsz)} for file in files),
        validate,
        folder,
        console,
        request.finetune,
        lambda: finetuned_onnx(source, folder, request.data, files[:OBSERVED], imgsz, request.finetune),
    )


def _model(request: Request, folder: Path, console: Console) -> tuple[Path, str, str]:
    """Return the deployed checkpoint, its host and its task.

    Raises:
        UsageError: it is a classifier, has another number of classes than the data set, or its host does not fine-tune.
    """
    checkpoint = checkpoints.load(request.source, request.repo)
    if request.finetune and checkpoint.host != ULTRALYTICS.name:
        reason = f"--finetune trains with ultralytics, and {request.source} is a checkpoint of {checkpoint.host}"
        raise UsageError(f"{reason}; accepted: a checkpoint of ultralytics")
    _compare_classes(checkpoint.model, request.data, console)
    source = _deployed(request, checkpoint.model, folder, console)
    task = evaluate.evaluator(source, imgsz=request.imgsz, repo=request.repo).task
    if task == "classify":
        raise UsageError(f"{request.source} is a classifier; accepted: a model that detects, segments or poses")
    return source, checkpoint.host, task


def _deployed(request: Request, model: nn.Module, folder: Path, console: Console) -> Path:
    """Return the checkpoint itself if nothing is to be folded, else a deployed copy in `folder`."""
    if not rep_blocks(model) and not foreign_blocks(model, leave=own_blocks(model)):
        return request.source
    out = Path(mkdtemp(dir=folder)) / f"{request.source.stem}-deployed.pt"  # the exporters copy it into `folder`
    deploy_file(request.source, out, repo=request.repo, console=console)
    return out


def _compare_classes(model: Any, data: Path, console: Console) -> None:
    """Say by name where the data set has other classes than the model.

    Raises:
        UsageError: the numbers of classes differ, so that no figure could be measured.
    """
    names = getattr(model, "names", None) or []
    known = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    given = class_names(data)
    if known and given and len(known) != len(given):
        raise UsageError(f"{data} has {len(given)} classes, the model {len(known)}; accepted: data of its classes")
    other = [f"{b} (model: {a})" for a, b in zip(known, given, strict=False) if a != b]
    if other:
        console.print(f"note: {data} names other classes: {', '.join(other[:5])}", markup=False)


def _check_output(request: Request) -> None:
    """Check the output's name before anything is made.

    Raises:
        UsageError: it exists, or cannot be made.
    """
    out = request.out
    if not 0 <= request.max_drop <= LARGEST_DROP:
        raise UsageError(f"--max-drop {request.max_drop:g} is no loss in points; accepted: 0 to {LARGEST_DROP}")
    if exists(out) and not request.overwrite:
        raise UsageError(f"{out} exists; choose another name, or --overwrite")
    if out.exists() and out.is_dir() != (request.target == "openvino"):
        raise UsageError(f"{out} is {'a folder' if out.is_dir() else 'a file'}; choose another name")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder; create it first")


def _write(path: Path, report: QuantizationReport, out: Path) -> None:
    """Put the chosen model and the report in their places."""
    unfinished = out.with_name(f".{out.name}-unfinished")
    _remove(unfinished)
    if path.is_dir():
        shutil.copytree(path, unfinished)
    else:
        shutil.copy2(path, unfinished)
    _remove(out)
    os.replace(unfinished, out)
    record = out.with_name(f"{out.name}.json")
    record.write_text(json.dumps(report.record(), indent=1) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _tell(request: Request, report: QuantizationReport, console: Console) -> None:
    """Print the table, the layers that lose most, and which model was written."""
    chosen, out = report.chosen, request.out
    console.print(report.table())
    for name, error in report.worst_layers():
        console.print(f"{name}: output off by {100 * error:.1f} % (root mean square)", markup=False)
    if report.seconds[chosen.label] > report.seconds[report.float32.label]:
        console.print(f"note: on this processor the 8-bit model is slower than float32 in {RUNTIMES[request.target]}")
    more = "" if report.within(chosen) else f", more than the tolerated {request.max_drop:g}"
    loss = f"{chosen.label} loses {report.drop(chosen):+.2f} points of {report.figure}{more}"
    console.print(f"{loss}; wrote {out} and {out}.json", markup=False)
