"""The table of backends: what each needs, and where it runs."""

from __future__ import annotations

import torch

from yolorep.bench.backends.exported import run_onnxruntime, run_tensorrt
from yolorep.bench.backends.job import Backend
from yolorep.bench.backends.ncnn_cpu import run_ncnn
from yolorep.bench.backends.openvino_cpu import run_openvino
from yolorep.bench.backends.pytorch import run_compile, run_cuda_graph, run_eager


def _pip(*packages: str) -> str:
    return f"python -m pip install {' '.join(packages)}"


ONNX = ("onnx",)
TABLE = [
    Backend("eager", run_eager, every_form=True),
    Backend("channels_last", lambda job: run_eager(job, layout=torch.channels_last), every_form=True),
    Backend(
        "bfloat16",
        lambda job: run_eager(job, dtype=torch.bfloat16, layout=torch.channels_last),
        precision="bfloat16",
        every_form=True,
    ),
    Backend(
        "half",
        lambda job: run_eager(job, dtype=torch.float16, layout=torch.channels_last),
        precision="half",
        devices=("cuda",),
        every_form=True,
    ),
    Backend("cuda-graph", run_cuda_graph, devices=("cuda",), every_form=True),
    Backend("cuda-graph-half", lambda job: run_cuda_graph(job, torch.float16), precision="half", devices=("cuda",)),
    Backend("compile", run_compile),
    Backend("onnxruntime", run_onnxruntime, needs=("onnxruntime", *ONNX), install=_pip("onnxruntime", "onnx")),
    Backend("openvino", run_openvino, needs=("openvino", *ONNX), install=_pip("openvino", "onnx"), devices=("cpu",)),
    Backend(
        "openvino-bf16",
        lambda job: run_openvino(job, precision="bf16"),
        precision="bfloat16",
        needs=("openvino", *ONNX),
        install=_pip("openvino", "onnx"),
        devices=("cpu",),
    ),
    Backend(
        "openvino-int8",
        lambda job: run_openvino(job, int8=True),
        precision="int8",
        needs=("openvino", "nncf", *ONNX),
        install=_pip("openvino", "nncf", "onnx"),
        devices=("cpu",),
    ),
    Backend("ncnn", run_ncnn, needs=("ncnn", "pnnx"), install=_pip("ncnn", "pnnx"), devices=("cpu",)),
    Backend(
        "tensorrt",
        run_tensorrt,
        precision="half",
        needs=("tensorrt", *ONNX),
        install=_pip("tensorrt", "onnx"),
        devices=("cuda",),
    ),
]
BACKENDS = {backend.name: backend for backend in TABLE}
REFERENCE = "eager"
