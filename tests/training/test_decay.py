"""A step that decays equivalent kernels is the step with the penalty in the loss, whatever the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop, Rprop

from tests.blocks.layers import image
from tests.helpers import randomize_, run_python
from yolorep import BlockError, Conv_C3
from yolorep.blocks import decay_equivalent_kernels_, equivalent_l2
from yolorep.training.penalty import kernels, penalized_blocks

DECAY = 0.5  # large, so that a wrong step shows
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda groups: SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda groups: Adam(groups, lr=0.01),
    "AdamW": lambda groups: AdamW(groups, lr=0.01, weight_decay=0),
    "RMSprop": lambda groups: RMSprop(groups, lr=0.01),
}


def small_model() -> nn.Sequential:
    """Two RepVGG blocks, one without a 1x1 branch, one of another kind, and a plain convolution."""
    blocks = [Conv_C3(4, 6), Conv_C3(6, 6, identity="conv"), Conv_C3(6, 6, 1), Conv_C3(6, 6, block="mobileone")]
    return randomize_(nn.Sequential(*blocks, nn.Conv2d(6, 2, 1))).double().train()


def groups(model: nn.Module, *spared: nn.Parameter) -> list[dict[str, Any]]:
    """The groups of the hosts: biases, kernels with weight decay, and the rest, `spared` among them."""
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    free = {id(p) for p in spared}
    decayed = [p for p in rest if p.dim() == 4 and id(p) not in free]
    known = {id(p) for p in (*biases, *decayed)}
    others = [p for p in rest if id(p) not in known]
    kinds = ((biases, 0.0), (decayed, DECAY), (others, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in kinds]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_is_the_one_with_the_penalty_in_the_loss(name: str) -> None:
    model = small_model()
    other = copy.deepcopy(model)
    optimizer = OPTIMIZERS[name](groups(model))
    decay_equivalent_kernels_(optimizer, model)
    spared = [kernel for block in penalized_blocks(other) for kernel in kernels(block)]
    reference = OPTIMIZERS[name](groups(other, *spared))
    for _ in range(2):
        x = image(4).double()
        for net, steps, weight in ((model, optimizer, 0.0), (other, reference, DECAY / 2)):
            steps.zero_grad()
            loss = net(x).square().mean()  # the pass moves the running statistics that the penalty uses
            (loss + weight * equivalent_l2(net)).backward()
            steps.step()
    for (key, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("unscaled", [False, True])
def test_fused_step_decays_as_the_other_under_a_loss_scale(unscaled: bool) -> None:
    """A fused step unscales gradients itself, after the penalty has joined them."""
    first, x = small_model(), image(4).double()
    models = first, copy.deepcopy(first)
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = SGD(groups(model), lr=0.01, fused=fused)
        decay_equivalent_kernels_(optimizer, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(model(x).square().mean()).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
    for (key, got), expected in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9, msg=key)


def test_optimizer_without_weight_decay_goes_on_without() -> None:
    model = small_model()
    optimizer = Rprop(model.parameters())
    before = [group["params"][:] for group in optimizer.param_groups]
    decay_equivalent_kernels_(optimizer, model)
    assert [group["params"] for group in optimizer.param_groups] == before


def test_kernels_move_to_the_group_of_their_batch_norm() -> None:
    model = small_model()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    before = [len(group["params"]) for group in optimizer.param_groups]
    decay_equivalent_kernels_(optimizer, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [before[0], before[1] - 4, before[2] + 4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, DECAY, 0]


def test_kernels_keep_the_options_of_their_group_in_a_new_one_where_none_has_them() -> None:
    model = small_model()
    by_kind = groups(model)
    by_kind[1]["lr"] = 0.05
    optimizer = OPTIMIZERS["SGD"](by_kind)
    decay_equivalent_kernels_(optimizer, model)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups[1:]] == [
        (0.05, DECAY),
        (0.01, 0),
        (0.05, 0),
    ]
    assert len(optimizer.param_groups[-1]["params"]) == 4


@pytest.mark.parametrize("frozen", ["0.conv.weight", "0."])
def test_frozen_kernels_stay(frozen: str) -> None:
    model = small_model()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    decay_equivalent_kernels_(optimizer, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(frozen)
    before = copy.deepcopy(model.state_dict())
    model(image(4).double()).square().mean().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_kernel_that_is_frozen_after_a_step_stays() -> None:
    """Its last gradient may be there still."""
    model = small_model()
    optimizer = OPTIMIZERS["RMSprop"](groups(model))
    decay_equivalent_kernels_(optimizer, model)
    kernel = model[0].conv.weight
    kernel.requires_grad_(False).grad = torch.zeros_like(kernel)
    before = kernel.clone()
    model(image(4).double()).square().mean().backward()
    optimizer.step()
    assert torch.equal(kernel, before)


@pytest.mark.parametrize(
    ("model", "has"),
    [
        (Conv_C3(4, 4, block="mobileone"), "this model has block mobileone"),
        (Conv_C3(4, 4, 1), "this model has block repvgg"),  # 1x1: no two kernels to add
        (nn.Conv2d(4, 4, 3), "this model has no rep blocks"),
    ],
)
def test_models_without_equivalent_kernels_are_refused(model: nn.Module, has: str) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(BlockError, match=f"equivalent_l2 is defined for block repvgg, by its .*; {has}$"):
        decay_equivalent_kernels_(optimizer, model)


PROCESSES = """
import os, sys, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from yolorep import Conv_C3
from yolorep.blocks import decay_equivalent_kernels_

def work(rank, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Conv_C3(4, 4)
    model.bn.running_var.fill_(1 + rank)  # each process has seen images of its own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    decay_equivalent_kernels_(optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kernels = [torch.zeros_like(model.conv.weight) for _ in range(2)]
    dist.all_gather(kernels, model.conv.weight.detach())
    if rank == 0:
        print(torch.equal(*kernels))

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), 2)
"""


def test_processes_that_train_together_stay_in_step(tmp_path: Any) -> None:
    script = tmp_path / "work.py"
    script.write_text(PROCESSES)
    code = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    assert run_python(code, script, tmp_path / "rendezvous", fresh=True).strip() == "True"
