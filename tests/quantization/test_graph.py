"""The ONNX graph: which nodes stay in float, exact equalization, errors of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from yolorep.quantization.graph import convolutions, equalize_, float_nodes, layer_errors


def exported(module: nn.Module, folder: Path, channels: int = 3) -> Any:
    file = folder / "model.onnx"
    x = torch.randn(1, channels, 16, 16)
    torch.onnx.export(module.eval(), (x,), str(file), opset_version=17, dynamo=False)
    return onnx.load(file)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


class Head(nn.Module):
    """A convolution, a decoded output with a distribution focal loss, and another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.dfl = nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(torch.sigmoid(self.stem(x)) * 2)
        return self.dfl(y.view(1, 4, 4, -1).softmax(1)) * 8


def test_float_nodes_are_those_behind_the_last_learned_convolution(tmp_path: Path) -> None:
    model = exported(Head(), tmp_path)
    kept = set(float_nodes(model))
    kinds = [(node.op_type, node.name in kept) for node in model.graph.node if node.op_type != "Constant"]
    assert ("Sigmoid", False) in kinds
    assert ("Softmax", True) in kinds
    assert [kept_ for kind, kept_ in kinds if kind == "Conv"] == [False, False, True]
    assert dict(kinds)["Mul"], "the scale of the decoded boxes stays in float"


@pytest.mark.parametrize("bias", [True, False])
def test_equalized_relu_network_is_the_same_function_with_closer_ranges(tmp_path: Path, bias: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=bias))
    with torch.no_grad():
        network[0].weight.mul_(torch.logspace(-3, 3, 6)[:, None, None, None])
        network[0].weight[2] = 0  # a pruned channel
    model = exported(network, tmp_path)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    assert equalize_(model) == 1
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    expected = run(before, x)
    assert np.abs(run(model, x) - expected).max() <= 1e-5 * np.abs(expected).max()
    weights = onnx.numpy_helper.to_array(
        next(t for t in model.graph.initializer if t.name == convolutions(model)[0].input[1])
    )
    ranges = np.abs(weights).reshape(6, -1).max(1)
    assert ranges[ranges > 0].max() / ranges[ranges > 0].min() < 1e4, "a factor of 1e6 apart before"


@pytest.mark.parametrize("between", [nn.SiLU(), nn.Identity(), nn.LeakyReLU(0.1)])
def test_other_activations_are_left_alone(tmp_path: Path, between: nn.Module) -> None:
    model = exported(nn.Sequential(nn.Conv2d(3, 6, 3), between, nn.Conv2d(6, 4, 3)), tmp_path)
    assert equalize_(model) == 0


def test_a_channel_that_is_read_twice_is_left_alone(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x).relu()
            return self.b(y) + y

    assert equalize_(exported(Twice(), tmp_path)) == 0


def test_layer_errors_name_the_layer_that_was_changed(tmp_path: Path) -> None:
    model = exported(nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 4, 3)), tmp_path)
    after = onnx.ModelProto()
    after.CopyFrom(model)
    second = convolutions(after)[1]
    tensor = next(t for t in after.graph.initializer if t.name == second.input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(1.1 * onnx.numpy_helper.to_array(tensor), tensor.name))
    name = model.graph.input[0].name
    feed = {name: np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)}
    errors = layer_errors(model, after, [feed, feed])
    assert list(errors) == [node.name for node in convolutions(model)]
    first, last = errors.values()
    assert first == 0
    assert 0.05 < last < 0.15
