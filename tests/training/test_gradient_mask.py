"""`repopt` trains a stock model step by step as `csla` trains its kernels (arXiv 2205.15242, Proposition 3.1)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from yolorep import BlockError, Conv_C3, deploy, expand
from yolorep.blocks.csla import merged
from yolorep.hosts.shared_hooks import prepared
from yolorep.stock_layers import rep_blocks
from yolorep.training.gradient_mask import mask_steps_
from yolorep.training.kernel_scales import Scales

tasks = pytest.importorskip("ultralytics.nn.tasks")
ROWS = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C2f", [8, True]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3]]]
STEPS = 50
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def build(block: str, **top: Any) -> nn.Module:
    """A small float64 classifier with two classes; seeded, so that all blocks start from the same kernels.

    top: other keys of its YAML.
    """
    torch.manual_seed(0)
    yaml = {**top, "nc": 2, "rep": block, "backbone": ROWS, "head": [[-1, 1, "Classify", ["nc"]]]}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # a model that is widened later has scales that float32 has rounded
    try:
        model = tasks.ClassificationModel(yaml, nc=2, verbose=False).train()
    finally:
        torch.set_default_dtype(before)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


def ultralytics(name: str, decay: float = 5e-3) -> Optimizer:
    from ultralytics.engine.trainer import BaseTrainer

    trainer = BaseTrainer.__new__(BaseTrainer)
    return lambda model: BaseTrainer.build_optimizer(trainer, model, name, lr=1e-2, momentum=0.9, decay=decay)


def yolov5(name: str, decay: float = 5e-3) -> Optimizer:
    torch_utils = pytest.importorskip("yolov5.utils.torch_utils")
    build = torch_utils.smart_optimizer
    return lambda model: prepared(build(model, name, lr=1e-2, momentum=0.9, decay=decay), model)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()


def resumed(
    model: nn.Module, optimizer: torch.optim.Optimizer, block: str, make: Optimizer, **top: Any
) -> tuple[Any, Any]:
    """A new model and optimizer of the same YAML, with the states that a checkpoint stores."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved, fresh = torch.load(file, weights_only=False), build(block, **top)
    fresh.load_state_dict(saved["model"])
    other = make(fresh)
    other.load_state_dict(saved["optimizer"])
    return fresh, other


def trained(block: str, make: Optimizer, **top: Any) -> nn.Module:
    model = build(block, **top)
    optimizer = make(model)
    steps(model, optimizer, 0, STEPS // 2)
    model, optimizer = resumed(model, optimizer, block, make, **top)
    steps(model, optimizer, STEPS // 2, STEPS)
    return model


def difference(csla: nn.Module, repopt: nn.Module) -> float:
    """The largest difference of a kernel, relative to the kernel's largest value."""
    worst = 0.0
    for name, block in csla.named_modules():
        if isinstance(block, Conv_C3):
            expected, got = merged(block._parts()).weight(), repopt.get_submodule(name).conv.weight
            worst = max(worst, float((expected - got).abs().max().detach() / expected.abs().max().detach()))
    return worst


CASES = {  # Adam, NAdam and RAdam add weight decay to the gradient, where it cannot be shared out
    "ultralytics SGD": (ultralytics, "SGD", {}),
    "ultralytics AdamW": (ultralytics, "AdamW", {}),
    "ultralytics Adam": (ultralytics, "Adam", {"decay": 0.0}),
    "ultralytics NAdam": (ultralytics, "NAdam", {"decay": 0.0}),
    "ultralytics RAdam": (ultralytics, "RAdam", {"decay": 0.0}),
    "ultralytics MuSGD": (ultralytics, "MuSGD", {}),
    "YOLOv5 SGD": (yolov5, "SGD", {}),
    "YOLOv5 AdamW": (yolov5, "AdamW", {}),
    "YOLOv5 Adam": (yolov5, "Adam", {"decay": 0.0}),
}
BOUND = 1e-10


def iterate_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """MuSGD's Newton-Schulz iteration in the matrices' own dtype: the host's bfloat16 rounds each sum its own way."""
    muon = pytest.importorskip("ultralytics.optim.muon")

    def iterate(matrices: torch.Tensor, eps: float = 1e-7) -> torch.Tensor:
        x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + eps)
        tall = x.size(-2) > x.size(-1)
        x = x.mT if tall else x
        for _ in range(5):
            product = x @ x.mT
            x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
        return x.mT if tall else x

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz5", iterate)


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_with_a_resume_give_the_same_kernels(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, name, options = CASES[case]
    if name == "MuSGD":
        iterate_exactly(monkeypatch)
    csla, repopt = (trained(f"{block}(small=0.7)", host(name, **options)) for block in ("csla", "repopt"))
    assert len(rep_blocks(csla)) > 3
    assert rep_blocks(repopt) == []
    assert difference(csla, repopt) < BOUND
    start = build("repopt(small=0.7)")
    assert difference(build("csla(small=0.7)"), start) < 1e-15
    assert difference(csla, start) > 0.02, "the kernels have moved by far more"


def test_without_the_mask_the_kernels_differ() -> None:
    csla, repopt = build("csla"), build("repopt")
    assert difference(csla, repopt) < 1e-15
    steps(csla, ultralytics("SGD")(csla), 0, 5)
    steps(repopt, torch.optim.SGD(repopt.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-3), 0, 5)
    assert difference(csla, repopt) > 1e-3


def test_repopt_leaves_a_trained_model_as_it_is_and_records_the_request() -> None:
    stock = build("csla")
    stock = deploy(stock.eval())
    asked = expand(stock, "repopt")
    assert asked.yaml["rep"]["block"] == "repopt"
    assert rep_blocks(asked) == []
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), asked.parameters(), strict=True))
    assert "rep" not in deploy(asked).yaml


def test_mask_of_an_unknown_optimizer_is_refused() -> None:
    layer = nn.Conv2d(1, 1, 1)
    with pytest.raises(BlockError, match=r"repopt does not know the optimizer Rprop; accepted: SGD, Adam"):
        mask_steps_(torch.optim.Rprop(layer.parameters()), {layer.weight: Scales(layer.weight, layer.weight)})


def test_a_host_without_the_function_that_orthogonalizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    muon = pytest.importorskip("ultralytics.optim.muon")
    monkeypatch.delattr(muon, "muon_update")
    layer = nn.Conv2d(1, 1, 1, bias=False)
    with pytest.raises(BlockError, match=r"needs the function muon_update of ultralytics\.optim\.muon, which has none"):
        mask_steps_(muon.MuSGD(layer.parameters()), {layer.weight: Scales(layer.weight, layer.weight)})


def test_repopt_is_no_block_of_its_own() -> None:
    with pytest.raises(BlockError, match="adds no branch: it is a way to train a stock layer"):
        Conv_C3(4, 4, block="repopt")


def test_an_adaptive_step_keeps_unmasked_parameters_and_the_decay() -> None:
    first = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)).double()
    second = copy.deepcopy(first)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5) for net in (first, second)]
    weight = second[0].weight
    before = weight.detach().clone()
    mask_steps_(optimizers[1], {weight: Scales(torch.ones_like(weight), torch.ones_like(weight))})
    for net, optimizer in zip((first, second), optimizers, strict=True):
        net(torch.ones(1, 2, 1, 1, dtype=torch.float64)).sum().backward()
        optimizer.step()
    assert torch.equal(first[1].weight, second[1].weight)
    decayed = before * (1 - 0.1 * 0.5)
    torch.testing.assert_close(weight - decayed, 3 * (first[0].weight - decayed))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_fused_step_that_is_left_out_changes_no_kernel(name: str) -> None:
    """A fused step is called where gradients are not finite too, and does nothing."""
    layer = nn.Conv2d(2, 2, 1, bias=False)
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1, weight_decay=0.5, fused=True)
    mask_steps_(optimizer, {layer.weight: Scales(torch.ones_like(layer.weight), torch.ones_like(layer.weight))})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for value, moved in ((1.0, True), (float("inf"), False)):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(layer(torch.full((1, 2, 1, 1), value)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, layer.weight) != moved
