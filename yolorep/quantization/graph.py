"""The ONNX graph of an exported detector: which nodes are quantized, and how far each layer is off afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def convolutions(model: Any) -> list[Any]:
    """Return the convolution nodes of an ONNX model, in the order of execution."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def float_nodes(model: Any) -> list[str]:
    """Return the names of the nodes that stay in float: all that decode the outputs of the last convolutions to boxes.

    A node decodes if no learned convolution comes after it. The single-channel convolution of a distribution focal
    loss head counts as decoding. Coordinates span the whole image and scores the unit interval, so that 8 bits for both
    lose most of the mAP.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    feeds: set[str] = set()  # tensors that a learned convolution depends on
    names = []
    for node in reversed(model.graph.node):
        learned = (
            node.op_type == "Conv" and constants[node.input[1]].dims[0] > 1 if _has_weight(node, constants) else False
        )
        if learned or any(output in feeds for output in node.output):
            feeds.update(node.input)
        else:
            names.append(node.name)
    return names[::-1]


def _has_weight(node: Any, constants: dict[str, Any]) -> bool:
    return len(node.input) > 1 and node.input[1] in constants


def equalize_(model: Any) -> int:
    """Equalize in place the channel ranges of convolutions that only a ReLU separates; return the number of pairs.

    Channel i of the first convolution is divided by s_i = sqrt(r1_i / r2_i), with r1_i and r2_i the largest weights
    that write and read the channel, and the second convolution is multiplied by it (Nagel et al., arXiv 1906.04721,
    equation 11). A ReLU passes positive factors through, so that the function stays the same. Other activations do
    not, and pairs around them are left alone.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pairs = 0
    for first in convolutions(model):
        second = _after_relu(first, readers)
        if second is None or not all(_has_weight(node, constants) for node in (first, second)):
            continue
        names = [first.input[1], *first.input[2:3], second.input[1]]
        if any(len(readers[name]) > 1 for name in names) or _groups(second) > 1:
            continue
        write, read = (numpy_helper.to_array(constants[node.input[1]]).copy() for node in (first, second))
        ranges = np.abs(write).reshape(len(write), -1).max(1), np.abs(read).max((0, 2, 3))
        alive = (ranges[0] > 0) & (ranges[1] > 0)
        factor = np.where(alive, np.sqrt(ranges[0] / np.where(alive, ranges[1], 1)), 1).astype(write.dtype)
        write /= factor[:, None, None, None]
        read *= factor[None, :, None, None]
        values = {first.input[1]: write, second.input[1]: read}
        if len(first.input) > 2:
            values[first.input[2]] = numpy_helper.to_array(constants[first.input[2]]) / factor
        for name, value in values.items():
            constants[name].CopyFrom(numpy_helper.from_array(value, name))
        pairs += 1
    return pairs


def _after_relu(first: Any, readers: dict[str, list[Any]]) -> Any | None:
    """Return the convolution that alone reads `first` through a ReLU, or None."""
    relu = readers.get(first.output[0], [])
    if [node.op_type for node in relu] != ["Relu"]:
        return None
    after = readers.get(relu[0].output[0], [])
    return after[0] if [node.op_type for node in after] == ["Conv"] else None


def _groups(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def layer_errors(before: Any, after: Any, inputs: Iterable[dict[str, Array]]) -> dict[str, float]:
    """Return the relative error of each convolution's output between two ONNX models, by node name.

    before, after: the float model and its quantized form, whose convolutions have the same output names.
    inputs: images as the models take them. The error is the root mean square of the difference, relative to that of
    the float output, so that 1 means that nothing is left of the signal.
    """
    outputs = {node.output[0]: node.name for node in convolutions(before)}
    shared = outputs.keys() & {name for node in after.graph.node for name in node.output}
    names = [name for name in outputs if name in shared]
    sessions = [_session_with_outputs(model, names) for model in (before, after)]
    difference, signal = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for feed in inputs:
        for name, a, b in zip(names, *(session.run(names, feed) for session in sessions), strict=True):
            difference[name] += float(np.square(a - b, dtype=np.float64).sum())
            signal[name] += float(np.square(a, dtype=np.float64).sum())
    return {outputs[name]: (difference[name] / max(signal[name], 1e-30)) ** 0.5 for name in names}


def _session_with_outputs(model: Any, names: list[str]) -> Any:
    """Return an ONNX Runtime session that also returns the named tensors, with nothing fused across them."""
    import onnx
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
