"""Export a model to ONNX, and run the file with ONNX Runtime or TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolorep.bench.backends.job import Job, Running, array, copy_, tensors
from yolorep.errors import UsageError


def onnx_file(job: Job) -> Path:
    """Return the model exported to ONNX with the static shape of the images; exported once per folder."""
    file = job.folder / "model.onnx"
    if not file.exists():
        job.model(job.images)  # the heads of both hosts keep their anchors for this shape, and export them as constants
        torch.onnx.export(job.model, (job.images,), str(file), input_names=["images"], dynamo=False)
    return file


def run_onnxruntime(job: Job) -> Running:
    """Run the ONNX file with ONNX Runtime.

    Raises:
        UsageError: a GPU is asked for, and this onnxruntime has none.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if job.device.type == "cuda" else []
    available = onnxruntime.get_available_providers()
    if not set(wanted) <= set(available):
        raise UsageError("this onnxruntime has no CUDA: python -m pip install onnxruntime-gpu")
    file = onnx_file(job)
    session = onnxruntime.InferenceSession(str(file), options, providers=[*wanted, "CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, array(job.images)
    return Running(lambda: session.run(None, {name: x}), tensors, lambda images: np.copyto(x, images.numpy()), file)


def run_tensorrt(job: Job) -> Running:
    """Build a float16 engine from the ONNX file. Not run yet: no machine with TensorRT was available."""
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    explicit = getattr(
        tensorrt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None
    )  # the only kind since TensorRT 10
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser, file = tensorrt.OnnxParser(network, logger), onnx_file(job)
    if not parser.parse(file.read_bytes()):
        raise UsageError(f"TensorRT does not read the ONNX file: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_flag(tensorrt.BuilderFlag.FP16)
    plan = builder.build_serialized_network(network, config)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    x, outputs = job.images.to(job.device), []
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        tensor = x
        if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT:
            tensor = torch.empty(tuple(context.get_tensor_shape(name)), device=job.device)
            outputs.append(tensor)
        context.set_tensor_address(name, tensor.data_ptr())

    def call() -> list[Tensor]:
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return outputs

    return Running(call, tensors, lambda images: copy_(x, images), file)
