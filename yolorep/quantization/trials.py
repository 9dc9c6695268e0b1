"""Try quantization schemes on one model: quantize, validate, find the layers that lose most, time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from yolorep.errors import UsageError
from yolorep.hosts.ultralytics.build import quiet
from yolorep.quantization.graph import Array, convolutions, layer_errors
from yolorep.quantization.int8 import quantize_onnx, quantize_openvino
from yolorep.quantization.latency import latencies
from yolorep.quantization.report import FLOAT32, Candidate, QuantizationReport
from yolorep.quantization.schemes import Scheme

JUDGED = ("mask mAP50-95", "pose mAP50-95", "mAP50-95")  # the first that the task has is judged
STEPS = (1, 2, 4, 8)  # numbers of layers that are kept in float, where no scheme is within tolerance
MEASURED = 8  # images on which the error of each layer is measured


@dataclass
class Trials:
    """A float model and the schemes to try on it.

    float_onnx: the float model as ONNX, which every scheme starts from. in_runtime: returns the form of such a file for
        the runtime that is asked for: the file itself, or an OpenVINO folder.
    float_nodes: nodes that stay in float under every scheme.
    feeds: returns the calibration inputs, one image at a time, anew at each call.
    validate: returns the host's figures of an exported model.
    folder: for temporary files. paths: files of the models tried so far, by label.
    epochs: of fine-tuning; none at 0. finetune: fine-tunes the float model with 8-bit rounding, and returns it as ONNX
        with the same node names. Every scheme is tried on it too.
    """

    float_onnx: Path
    in_runtime: Callable[[Path], Path]
    float_nodes: Sequence[str]
    feeds: Callable[[], Iterable[dict[str, Array]]]
    validate: Callable[[Path], dict[str, float]]
    folder: Path
    console: Console
    epochs: int
    finetune: Callable[[], Path]
    paths: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sources = {0: (self.float_onnx, self.in_runtime(self.float_onnx))}  # by epochs of fine-tuning

    def run(self, schemes: Sequence[Scheme], max_drop: float) -> QuantizationReport:
        """Report on float32 and every scheme; keep more layers in float until a loss is within `max_drop`.

        Raises:
            UsageError: the float model finds nothing on the data set.
        """
        float32 = self._measured(FLOAT32, self._sources[0][1])
        figure = next((name for name in JUDGED if name in float32.figures), next(iter(float32.figures)))
        if not float32.figures[figure]:
            raise UsageError(f"the float model reaches a {figure} of 0 on this data set, so that no loss can be judged")
        report = QuantizationReport(figure, max_drop, [float32])
        for scheme in schemes:
            report.candidates.append(self._quantized(scheme))
        if self.epochs:
            self.console.print(f"fine-tuning with 8-bit rounding, {self.epochs} epochs", markup=False)
            tuned = self.finetune()
            self._sources[self.epochs] = tuned, self.in_runtime(tuned)
            report.candidates.append(self._measured(FLOAT32, self._sources[self.epochs][1], self.epochs))
            report.candidates += [self._quantized(scheme, self.epochs) for scheme in schemes]
        best = min(report.quantized, key=report.drop)
        scheme = next(scheme for scheme in schemes if scheme.name == best.scheme)
        report.layer_errors = self._errors(scheme, best.finetuned)
        for count in STEPS:
            if report.within(report.chosen):
                break
            worst = tuple(name for name, _ in report.worst_layers(count))
            report.candidates.append(self._quantized(scheme, best.finetuned, worst))
        report.seconds = latencies(self.paths, next(iter(self.feeds())))
        return report

    def _quantized(self, scheme: Scheme, epochs: int = 0, floats: tuple[str, ...] = ()) -> Candidate:
        """Quantize after `epochs` of fine-tuning; `floats` names the convolutions that stay in float too."""
        kept = [*self.float_nodes, *floats]
        stem = f"{scheme.name}-{epochs}-{len(floats)}"
        source, base = self._sources[epochs]
        if base.is_dir():
            path = Path(shutil.copytree(base, self.folder / f"{stem}_openvino_model"))
            quantize_openvino(source, next(path.glob("*.xml")), scheme, self.feeds, kept)
        else:
            path = self.folder / f"{stem}.onnx"
            quantize_onnx(source, path, scheme, self.feeds, kept)
        return self._measured(scheme.name, path, epochs, floats)

    def _measured(self, scheme: str, path: Path, epochs: int = 0, floats: tuple[str, ...] = ()) -> Candidate:
        """Validate a model."""
        made = Candidate(scheme, {}, size_of(path), floats, epochs)
        self.console.print(f"validating {made.label}", markup=False)
        with quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # the host's log and progress bars
            candidate = replace(made, figures=self.validate(path))
        self.paths[candidate.label] = path
        return candidate

    def _errors(self, scheme: Scheme, epochs: int) -> dict[str, float]:
        """Return the error of each layer under a scheme, on a few calibration images."""
        import onnx

        source, path = self._sources[epochs][0], self.folder / f"{scheme.name}-{epochs}-0.onnx"
        if not path.exists():  # OpenVINO is the target
            quantize_onnx(source, path, scheme, self.feeds, self.float_nodes)
        few = [feed for feed, _ in zip(self.feeds(), range(MEASURED), strict=False)]
        model = onnx.load(source)
        learned = {node.name for node in convolutions(model)} - set(self.float_nodes)
        found = layer_errors(model, onnx.load(path), few)
        return {name: error for name, error in found.items() if name in learned}


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
