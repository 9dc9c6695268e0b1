"""Run a model with OpenVINO on the CPU, in float32, bfloat16 or 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolorep.bench.backends.exported import onnx_file
from yolorep.bench.backends.job import Job, Running, array, tensors
from yolorep.errors import UsageError
from yolorep.quantization.graph import float_nodes
from yolorep.quantization.int8 import quantize_openvino
from yolorep.quantization.schemes import SCHEMES
from yolorep.telemetry import without_telemetry


def run_openvino(job: Job, *, precision: str = "f32", int8: bool = False) -> Running:
    """Run the ONNX file with OpenVINO.

    precision: f32 or bf16, of the arithmetic. int8: quantize it first.

    Raises:
        UsageError: the processor has no bfloat16.
    """
    openvino = without_telemetry("openvino")
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UsageError("this processor has no bfloat16")
    file = onnx_file(job)
    model = core.read_model(file)
    if int8:
        file = _quantized(file, job)
        model = core.read_model(file)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": job.threads}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    x = array(job.images)
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def call() -> list[Any]:
        request.infer()
        return [tensor.data for tensor in request.output_tensors]

    return Running(call, tensors, lambda images: np.copyto(x, images.numpy()), file)


def _quantized(file: Path, job: Job) -> Path:
    """Quantize the ONNX file by the scheme that `yolorep quantize` tries first, and return OpenVINO's file."""
    import onnx

    model, out = onnx.load(file), job.folder / "model-int8.xml"
    name, batch = model.graph.input[0].name, len(job.images)
    feeds = [{name: array(image.expand(batch, -1, -1, -1))} for image in job.calibration.split(1)]
    quantize_openvino(file, out, SCHEMES["nncf"], lambda: feeds, float_nodes(model))
    return out
