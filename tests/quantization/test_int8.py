"""Which convolutions of a quantized file compute in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from yolorep.quantization.graph import convolutions
from yolorep.quantization.int8 import quantize_onnx, quantize_openvino
from yolorep.quantization.schemes import SCHEMES

FEEDS = [{"x": np.random.default_rng(seed).random((1, 3, 16, 16), np.float32)} for seed in range(3)]


def exported(folder: Path) -> Path:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    file = folder / "float.onnx"
    x = torch.rand(1, 3, 16, 16)
    torch.onnx.export(network.eval(), (x,), str(file), opset_version=17, dynamo=False, input_names=["x"])
    return file


def in_onnx(file: Path) -> list[bool]:
    model = onnx.load(file)
    sources = {output: node.op_type for node in model.graph.node for output in node.output}
    return [sources.get(node.input[1]) == "DequantizeLinear" for node in convolutions(model)]


def in_openvino(file: Path) -> list[bool]:
    """Stored weights of 8 bits come before their conversion and scale."""
    import openvino

    def constant(operation: Any) -> Any:
        return operation if operation.get_type_name() == "Constant" else constant(operation.input_value(0).get_node())

    operations = openvino.Core().read_model(file).get_ordered_ops()
    kinds = [constant(o.input_value(1).get_node()) for o in operations if o.get_type_name() == "Convolution"]
    return [kind.get_element_type().get_type_name() == "i8" for kind in kinds]


@pytest.mark.parametrize(
    ("scheme", "target"), [("minmax", "onnx"), ("nncf", "onnx"), ("nncf", "openvino"), ("nncf-tensor", "openvino")]
)
def test_named_convolutions_stay_in_float_and_all_others_do_not(scheme: str, target: str, tmp_path: Path) -> None:
    """The convolutions have biases, which OpenVINO makes additions with the name of the convolution."""
    pytest.importorskip("nncf")
    source = exported(tmp_path)
    names = [node.name for node in convolutions(onnx.load(source))]
    write, read = (quantize_onnx, in_onnx) if target == "onnx" else (quantize_openvino, in_openvino)
    for kept in ([], names[1:2], names[:2]):
        out = tmp_path / ("q.onnx" if target == "onnx" else "q.xml")
        write(source, out, SCHEMES[scheme], lambda: FEEDS, kept)
        assert read(out) == [name not in kept for name in names], kept


@pytest.mark.parametrize(("scheme", "largest"), [("minmax", 127), ("minmax-reduced", 64)])
def test_reduced_weights_have_7_bits(scheme: str, largest: int, tmp_path: Path) -> None:
    source, out = exported(tmp_path), tmp_path / "q.onnx"
    quantize_onnx(source, out, SCHEMES[scheme], lambda: FEEDS, [])
    weights = [
        onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4
    ]
    assert [int(abs(weight.astype(int)).max()) for weight in weights] == [largest] * 3
