"""Quantize a checkpoint to 8 bits for ONNX Runtime or OpenVINO, and measure what that costs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from rich.console import Console

from yolorep.errors import CheckpointError, UsageError
from yolorep.hosts import checkpoints, evaluate
from yolorep.hosts.shared_hooks import read_yaml
from yolorep.quantization.graph import Array, convolutions, float_nodes, layer_errors
from yolorep.quantization.images import FEW, calibration_files, class_names, letterboxed
from yolorep.quantization.int8 import quantize_onnx, quantize_openvino
from yolorep.quantization.report import Candidate, QuantizationReport
from yolorep.quantization.schemes import Scheme, chosen_schemes

TARGETS = {"onnx": ".onnx", "openvino": "_openvino_model"}
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
JUDGED = ("mAP50-95", "mask mAP50-95", "pose mAP50-95", "top-1")  # the first that the task has is judged
STEPS = (1, 2, 4, 8)  # numbers of layers that are kept in float, where no scheme is within tolerance
MEASURED = 8  # images on which the error of each layer is measured
ROUNDS, WARM_UP = 20, 3  # inferences of each model, timed and not


@dataclass(frozen=True)
class Request:
    """A call of the command. images: how many are used for calibration. max_drop: points of the judged figure."""

    source: Path
    out: Path
    data: Path
    imgsz: int | None = None
    schemes: tuple[str, ...] = ()
    images: int = 300
    max_drop: float = 0.5
    overwrite: bool = False
    repo: Path | None = None

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

    Every scheme is quantized and validated on the data set with the host's own validation. Where none is within
    tolerance, the 1, 2, 4 and 8 layers with the largest errors are kept in float, until one is. Then all models and the
    float32 model are timed in turns, and the fastest one within tolerance is written; the most accurate one where there
    is none, and the result is False.

    Raises:
        UsageError: the output, a scheme, a package or the data set is not accepted; nothing is written.
        CheckpointError, HostError: the checkpoint cannot be read or exported.
    """
    schemes = chosen_schemes(request.schemes, request.target)
    _check_output(request)
    files = calibration_files(request.data, request.images)
    with TemporaryDirectory() as folder:
        job = _Job.start(request, files, Path(folder), console)
        report = job.run(schemes)
        job.write(report)
    console.print(report.table())
    for name, error in report.worst_layers():
        console.print(f"{name}: output off by {100 * error:.1f} % (root mean square)", markup=False)
    ok = report.within(report.chosen)
    if report.seconds[report.chosen.label] > report.seconds[report.float32.label]:
        console.print(f"note: on this processor the 8-bit model is slower than float32 in {RUNTIMES[request.target]}")
    console.print(_verdict(request, report, ok), markup=False)
    return ok


class _Job:
    """The float model of a request, and the candidates made from it, in a temporary folder."""

    def __init__(self, request: Request, source: Path, folder: Path, host: str, task: str, console: Console) -> None:
        self.request, self.folder, self.host, self.task, self.console = request, folder, host, task, console
        self.source = source
        self.imgsz = request.imgsz or (224 if task == "classify" else 640)
        self.paths: dict[str, Path] = {}
        self.feeds: Callable[[], Iterable[dict[str, Array]]] = list

    @classmethod
    def start(cls, request: Request, files: Sequence[Path], folder: Path, console: Console) -> _Job:
        """Deploy and export the checkpoint, check the data set against it, and say what calibration is done on."""
        import onnx

        host, source, model = _deployed(request, folder, console)
        evaluator = evaluate.evaluator(source, imgsz=request.imgsz, repo=request.repo)
        job = cls(request, source, folder, host, evaluator.task, console)
        if evaluator.task == "classify":
            raise UsageError(f"{request.source} is a classifier; accepted: a model that detects, segments or poses")
        _compare_classes(model, request.data, console)
        note = "" if len(files) >= FEW else f"; {FEW} or more give ranges that can be relied on"
        console.print(f"calibrating on {len(files)} images of {request.data}{note}", markup=False)
        job.float_onnx = job.export("onnx")
        graph = onnx.load(job.float_onnx)
        job.kept = float_nodes(graph)
        name = graph.graph.input[0].name
        job.feeds = lambda: ({name: letterboxed(file, job.imgsz)} for file in files)
        return job

    def export(self, format: str) -> Path:
        """Export the float model by the host's own exporter, into the temporary folder."""
        place = self.folder / f"float-{format}"
        place.mkdir()
        if self.host == "ultralytics":
            from yolorep.hosts.ultralytics.exporter import export_float

            return export_float(self.source, place, self.imgsz, format)
        from yolorep.hosts.yolov5.exporter import export_float as export_tree

        return export_tree(self.source, place, self.imgsz, format, self.request.repo)

    def run(self, schemes: Sequence[Scheme]) -> QuantizationReport:
        """Measure float32 and every scheme, then keep layers in float while nothing is within tolerance."""
        base = self.float_onnx if self.request.target == "onnx" else self.export("openvino")
        float32 = self.measured("float32", base)
        figure = next((name for name in JUDGED if name in float32.figures), next(iter(float32.figures)))
        report = QuantizationReport(figure, self.request.max_drop, [float32])
        for scheme in schemes:
            report.candidates.append(self.quantized(scheme, ()))
        best = next(scheme for scheme in schemes if scheme.name == min(report.candidates[1:], key=report.drop).scheme)
        report.layer_errors = self.errors(best)
        for count in STEPS:
            if report.within(report.chosen):
                break
            worst = tuple(name for name, _ in report.worst_layers(count))
            self.console.print(f"no scheme within tolerance: {count} layers of {best.name} stay in float", markup=False)
            report.candidates.append(self.quantized(best, worst))
        report.seconds = _latencies(self.paths, next(iter(self.feeds())))
        return report

    def quantized(self, scheme: Scheme, floats: tuple[str, ...]) -> Candidate:
        """Quantize with one scheme; `floats` names the convolutions that stay in float too."""
        stem = f"{scheme.name}-{len(floats)}"
        kept = [*self.kept, *floats]
        if self.request.target == "onnx":
            path = self.folder / f"{stem}.onnx"
            quantize_onnx(self.float_onnx, path, scheme, self.feeds, kept)
        else:
            float_folder = self.folder / "float-openvino"
            source = next(float_folder.glob("*_openvino_model"))
            path = Path(shutil.copytree(source, self.folder / f"{stem}_openvino_model"))
            quantize_openvino(self.float_onnx, next(path.glob("*.xml")), scheme, self.feeds, kept)
        return self.measured(scheme.name, path, floats)

    def measured(self, scheme: str, path: Path, floats: tuple[str, ...] = ()) -> Candidate:
        """Validate a model with the host."""
        self.console.print(f"validating {scheme}" + f" with {len(floats)} layers in float" * bool(floats), markup=False)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # the host's progress bars
            figures = evaluate.exported_figures(
                path, self.host, self.task, self.request.data, imgsz=self.imgsz, repo=self.request.repo
            )
        candidate = Candidate(scheme, figures, _size(path), floats)
        self.paths[candidate.label] = path
        return candidate

    def errors(self, scheme: Scheme) -> dict[str, float]:
        """Return the error of each layer under a scheme, on a few calibration images."""
        import onnx

        path = self.folder / f"{scheme.name}-0.onnx"
        if not path.exists():
            quantize_onnx(self.float_onnx, path, scheme, self.feeds, self.kept)
        few = [feed for feed, _ in zip(self.feeds(), range(MEASURED), strict=False)]
        found = layer_errors(onnx.load(self.float_onnx), onnx.load(path), few)
        learned = {node.name for node in convolutions(onnx.load(self.float_onnx))} - set(self.kept)
        return {name: error for name, error in found.items() if name in learned}

    def write(self, report: QuantizationReport) -> None:
        """Put the chosen model and the report in their places."""
        out, path = self.request.out, self.paths[report.chosen.label]
        record = out.with_name(f"{out.name}.json")
        unfinished = out.with_name(f".{out.name}-unfinished")
        _remove(unfinished)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, unfinished)
        _remove(out)
        os.replace(unfinished, out)
        record.write_text(json.dumps(report.record(), indent=1) + "\n", encoding="utf-8")


def _deployed(request: Request, folder: Path, console: Console) -> tuple[str, Path, Any]:
    """Return the host, a checkpoint of the deployed model, and that model."""
    from yolorep.commands.convert import deploy_file

    checkpoint = checkpoints.load(request.source, request.repo)
    try:
        out = folder / f"{request.source.stem}-deployed.pt"
        deploy_file(request.source, out, repo=request.repo, console=console)
    except CheckpointError as error:
        if "no rep blocks" not in str(error):
            raise
        out = request.source
    return checkpoint.host, out, checkpoint.model


def _compare_classes(model: Any, data: Path, console: Console) -> None:
    """Say by name where the data set has other classes than the model.

    Raises:
        UsageError: the numbers of classes differ, so that no figure could be measured.
    """
    names = getattr(model, "names", None) or []
    known = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    given = class_names(data)
    if known and given and len(known) != len(given):
        raise UsageError(
            f"{data} has {len(given)} classes, the model {len(known)}; accepted: a data set of its classes"
        )
    other = [f"{b} (model: {a})" for a, b in zip(known, given, strict=False) if a != b]
    if other:
        console.print(f"note: {data} names other classes: {', '.join(other[:5])}", markup=False)


def _check_output(request: Request) -> None:
    out = request.out
    if out.exists() and not request.overwrite:
        raise UsageError(f"{out} exists; choose another name, or --overwrite")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder; create it first")
    if not request.data.exists():
        raise UsageError(f"{request.data} does not exist; accepted: a data.yaml with train, val and names")
    if request.data.is_file():
        read_yaml(request.data, "a data YAML: accepted is a mapping with train, val and names")


def _latencies(paths: Mapping[str, Path], feed: dict[str, Array]) -> dict[str, float]:
    """Return the median time in seconds of one inference of each model, timed in turns after a warm-up."""
    calls = {label: _session(path, feed) for label, path in paths.items()}
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(ROUNDS + WARM_UP):
        for label, call in calls.items():
            start = perf_counter()
            call()
            times[label].append(perf_counter() - start)
    return {label: median(found[WARM_UP:]) for label, found in times.items()}


def _session(path: Path, feed: dict[str, Array]) -> Callable[[], Any]:
    if path.is_dir():
        import openvino

        compiled = openvino.Core().compile_model(next(path.glob("*.xml")), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        image = next(iter(feed.values()))
        return lambda: compiled(image)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _verdict(request: Request, report: QuantizationReport, ok: bool) -> str:
    chosen = report.chosen
    loss = f"{chosen.label} loses {report.drop(chosen):+.2f} points of {report.figure}"
    end = f"; wrote {request.out} and {request.out.name}.json"
    if ok:
        return loss + end
    return f"{loss}, more than the tolerated {request.max_drop:g}{end}"
