"""The networks of the gallery, and what must hold for each on every host that builds it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.helpers import assert_same_outputs, randomize_, relative_error, tensors
from yolorep import deploy
from yolorep.numerics import TOLERANCE
from yolorep.stock_layers import rep_blocks

ACTIVATIONS = {  # network → activation
    **{f"yolov5{scale}-efficientrep.yaml": "ReLU" for scale in "ns"},
    **{f"yolov5{scale}-silu-efficientrep.yaml": "SiLU" for scale in "ns"},
    **{f"yolov5{scale}-csprepresnet.yaml": "SiLU" for scale in "ns"},
    **{f"yolov5{scale}-relu-csprepresnet.yaml": "ReLU" for scale in "ns"},
}
GALLERY = tuple(ACTIVATIONS)


def assert_trains(model: Any, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """One step with the host's own loss is finite and moves every branch of every block.

    loss_of: of a batch of images and its targets, which are rows (image, class, x, y, width, height).
    """
    images = torch.rand(2, 3, 64, 64)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.4, 0.3], [1, 1, 0.3, 0.6, 0.5, 0.5]])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    loss = loss_of(images, targets)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    branches = [f"{block}.branch_" for block in rep_blocks(model)]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    still = [name for name in before if name not in moved and name.startswith(tuple(branches))]
    assert branches
    assert still == []


@torch.no_grad()
def assert_deploys(model: Any) -> None:
    """To the host's layers alone, which compute the same in float64; their ONNX file computes it in float32."""
    import onnxruntime

    randomize_(model).eval().double()
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    expected, deployed = model(x), deploy(model)
    assert_same_outputs(expected, deployed(x))
    assert [m for m in deployed.modules() if type(m).__module__.startswith("yolorep")] == []
    graph, single = io.BytesIO(), deployed.float()(x.float())
    deployed.model[-1].export = True
    torch.onnx.export(deployed, (x.float(),), graph, dynamo=False)
    session = onnxruntime.InferenceSession(graph.getvalue(), providers=["CPUExecutionProvider"])
    output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.float().numpy()})[0])
    assert relative_error(tensors(single)[0], output) < 10 * TOLERANCE[torch.float32]
