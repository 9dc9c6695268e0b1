"""Run one quantization scheme on an exported float model."""

from __future__ import annotations

import ast
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from yolorep.quantization.graph import Array, equalize_
from yolorep.quantization.ranges import OUTLIERS, RULES, activation_ranges
from yolorep.quantization.schemes import Scheme
from yolorep.telemetry import without_telemetry

BARE = "/WithoutBiases"  # OpenVINO's ending for a convolution whose bias became an addition that has its name
Feeds = Callable[[], Iterable[dict[str, Array]]]


def quantize_onnx(source: Path, out: Path, scheme: Scheme, feeds: Feeds, float_nodes: Sequence[str]) -> None:
    """Write the 8-bit form (QDQ) of an ONNX model.

    feeds: returns the calibration inputs, one image at a time, anew at each call.
    float_nodes: names of the nodes that stay in float.
    """
    import onnx

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "float.onnx"
        _prepare(source, prepared, scheme)
        if scheme.tool == "nncf":
            onnx.save(_nncf(onnx.load(prepared), scheme, feeds, float_nodes), out)
        else:
            _onnxruntime(prepared, out, scheme, feeds, float_nodes)
    _copy_metadata(source, out)


def quantize_openvino(source: Path, out: Path, scheme: Scheme, feeds: Feeds, float_nodes: Sequence[str]) -> None:
    """Write the 8-bit form of an ONNX model as OpenVINO's `out` (.xml) and the weights beside it (.bin)."""
    openvino = without_telemetry("openvino")
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "float.onnx"
        _prepare(source, prepared, scheme)
        model = openvino.convert_model(prepared)
    names = {operation.get_friendly_name() for operation in model.get_ops()}
    parts = [part for name in float_nodes for part in (name, f"{name}{BARE}")]
    kept = [part for part in parts if part in names]
    openvino.save_model(_nncf(model, scheme, feeds, kept), out, compress_to_fp16=False)


def openvino_folder(source: Path, folder: Path, sidecar: str) -> Path:
    """Write an ONNX model that a host exported as the OpenVINO folder that the host runs; return the folder.

    folder: where `NAME_openvino_model` is made. sidecar: name of the file with stride, class names and task, which the
    host reads beside the model; `{stem}` stands for the model's name.
    """
    import onnx

    openvino = without_telemetry("openvino")
    out = folder / f"{source.stem}_openvino_model"
    out.mkdir()
    openvino.save_model(openvino.convert_model(source), out / f"{source.stem}.xml", compress_to_fp16=False)
    entries = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    metadata = {key: _value(text) for key, text in entries.items()}
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    (out / sidecar.format(stem=source.stem)).write_text(text, encoding="utf-8")
    return out


def _value(text: str) -> Any:
    """Read a metadata entry: hosts write the `str` of a number, a list or a mapping."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _prepare(source: Path, out: Path, scheme: Scheme) -> None:
    """Copy the float model; equalize channels where the scheme asks for it, and infer shapes for ONNX Runtime."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if scheme.equalize:
        model = onnx.load(source)
        equalize_(model)
        onnx.save(model, out)
    elif scheme.tool == "onnxruntime":
        with _quiet():
            # Fusing is left to the runtime: it would rename the nodes that stay in float.
            quant_pre_process(str(source), str(out), skip_optimization=True)
    else:
        onnx.save(onnx.load(source), out)


def _nncf(model: Any, scheme: Scheme, feeds: Feeds, float_nodes: Sequence[str]) -> Any:
    nncf = without_telemetry("nncf")
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization.range_estimator import (
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    samples = list(feeds())
    options: dict[str, Any] = {"disable_bias_correction": not scheme.bias_correction}
    if not scheme.per_channel:
        options["weights_quantization_params"] = advanced.QuantizationParameters(per_channel=False)
    if scheme.ranges == "percentile":
        ends = (
            StatisticsCollectorParameters(StatisticsType.QUANTILE, quantile_outlier_prob=OUTLIERS) for _ in range(2)
        )
        options["activations_range_estimator_params"] = RangeEstimatorParameters(*ends)
    preset = nncf.QuantizationPreset.PERFORMANCE if scheme.symmetric else nncf.QuantizationPreset.MIXED
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=preset,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=list(float_nodes), validate=False),
            advanced_parameters=advanced.AdvancedQuantizationParameters(**options),
        )


def _onnxruntime(source: Path, out: Path, scheme: Scheme, feeds: Feeds, float_nodes: Sequence[str]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._samples = iter(feeds())

        def get_next(self) -> dict[str, Array] | None:
            return next(self._samples, None)

    with _quiet():
        rule = RULES.get(scheme.ranges)
        extra = {"TensorQuantOverrides": activation_ranges(source, feeds, rule)} if rule else {}
        quantize_static(
            str(source),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduced,
            # Signed activations with a zero point run slowly in ONNX Runtime: symmetric alone uses them.
            activation_type=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(float_nodes),
            extra_options={"ActivationSymmetric": scheme.symmetric, **extra},
        )


def _copy_metadata(source: Path, out: Path) -> None:
    """Keep what the host wrote beside the graph: stride, class names, task, image size."""
    import onnx

    model = onnx.load(out)
    known = {entry.key for entry in model.metadata_props}
    missing = [entry for entry in onnx.load(source).metadata_props if entry.key not in known]
    if missing:
        model.metadata_props.extend(missing)
        onnx.save(model, out)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the tools' progress bars and log lines below an error."""
    from io import StringIO

    logger = logging.getLogger("nncf")
    before = logger.level, logging.root.manager.disable
    logger.setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(before[0])
        logging.disable(before[1])
