"""Try quantization schemes on one model: quantize, validate, find the layers that lose most, time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from rich.console import Console

from yolorep.errors import UsageError
from yolorep.hosts.ultralytics.build import quiet
from yolorep.quantization.graph import Array, convolutions, layer_errors
from yolorep.quantization.int8 import quantize_onnx, quantize_openvino
from yolorep.quantization.latency import latencies
from yolorep.quantization.report import Candidate, QuantizationReport
from yolorep.quantization.schemes import Scheme

JUDGED = ("mAP50-95", "mask mAP50-95", "pose mAP50-95")  # the first that the task has is judged
STEPS = (1, 2, 4, 8)  # numbers of layers that are kept in float, where no scheme is within tolerance
MEASURED = 8  # images on which the error of each layer is measured


@dataclass
class Trials:
    """A float model and what is tried on it.

    float_onnx: the float model as ONNX, which every scheme starts from. base: the float model in the runtime that is
        asked for: the same file, or an OpenVINO folder.
    float_nodes: nodes that stay in float under every scheme.
    feeds: returns the calibration inputs, one image at a time, anew at each call.
    validate: returns the host's figures of an exported model.
    folder: for temporary files. paths: files of the models tried so far, by label.
    """

    float_onnx: Path
    base: Path
    float_nodes: Sequence[str]
    feeds: Callable[[], Iterable[dict[str, Array]]]
    validate: Callable[[Path], dict[str, float]]
    folder: Path
    console: Console
    paths: dict[str, Path] = field(default_factory=dict)

    def run(self, schemes: Sequence[Scheme], max_drop: float) -> QuantizationReport:
        """Report on float32 and every scheme; keep layers in float while no loss is within `max_drop` points.

        Raises:
            UsageError: the float model finds nothing on the data set.
        """
        float32 = self._measured("float32", self.base)
        figure = next((name for name in JUDGED if name in float32.figures), next(iter(float32.figures)))
        if not float32.figures[figure]:
            raise UsageError(f"the float model reaches a {figure} of 0 on this data set, so that no loss can be judged")
        report = QuantizationReport(figure, max_drop, [float32])
        for scheme in schemes:
            report.candidates.append(self._quantized(scheme, ()))
        best = next(scheme for scheme in schemes if scheme.name == min(report.candidates[1:], key=report.drop).scheme)
        report.layer_errors = self._errors(best)
        for count in STEPS:
            if report.within(report.chosen):
                break
            worst = tuple(name for name, _ in report.worst_layers(count))
            report.candidates.append(self._quantized(best, worst))
        report.seconds = latencies(self.paths, next(iter(self.feeds())))
        return report

    def _quantized(self, scheme: Scheme, floats: tuple[str, ...]) -> Candidate:
        """Quantize with one scheme; `floats` names the convolutions that stay in float too."""
        kept = [*self.float_nodes, *floats]
        stem = f"{scheme.name}-{len(floats)}"
        if self.base.is_dir():
            path = Path(shutil.copytree(self.base, self.folder / f"{stem}_openvino_model"))
            quantize_openvino(self.float_onnx, next(path.glob("*.xml")), scheme, self.feeds, kept)
        else:
            path = self.folder / f"{stem}.onnx"
            quantize_onnx(self.float_onnx, path, scheme, self.feeds, kept)
        return self._measured(scheme.name, path, floats)

    def _measured(self, scheme: str, path: Path, floats: tuple[str, ...] = ()) -> Candidate:
        self.console.print(f"validating {scheme}" + f" with {len(floats)} layers in float" * bool(floats), markup=False)
        with quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # the host's log and progress bars
            figures = self.validate(path)
        candidate = Candidate(scheme, figures, size_of(path), floats)
        self.paths[candidate.label] = path
        return candidate

    def _errors(self, scheme: Scheme) -> dict[str, float]:
        """Return the error of each layer under a scheme, on a few calibration images."""
        import onnx

        path = self.folder / f"{scheme.name}-0.onnx"
        if not path.exists():  # OpenVINO is the target
            quantize_onnx(self.float_onnx, path, scheme, self.feeds, self.float_nodes)
        few = [feed for feed, _ in zip(self.feeds(), range(MEASURED), strict=False)]
        model = onnx.load(self.float_onnx)
        learned = {node.name for node in convolutions(model)} - set(self.float_nodes)
        found = layer_errors(model, onnx.load(path), few)
        return {name: error for name, error in found.items() if name in learned}


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
