"""Models, forms and training steps that the GPU checks and timings share."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_rows import Setting
from yolorep import Conv_C3
from yolorep.bench.measure import LAYOUTS
from yolorep.bench.training import COMPILED, JOINT, SEPARATE

TOY_MODEL, MODEL = 64, 640  # pixels
JOINT_NODE = "NormalizedSum"  # class of the joint step's autograd function


def with_form(module: nn.Module, form: str, setting: Setting) -> nn.Module:
    """Return a copy whose blocks run in `form`: separate, joint or compiled."""
    copy = deepcopy(module)
    for block in copy.modules():
        if isinstance(block, Conv_C3):
            block.joint = form == JOINT
    if form != COMPILED:
        return copy
    torch.compiler.reset()
    small = isinstance(module, Conv_C3)
    backend = "inductor" if not setting.toy else "aot_eager" if small else "eager"  # toy size: seconds, not minutes
    return torch.compile(copy, backend=backend)  # type: ignore[return-value]


def outputs_of(model: nn.Module, x: Tensor, setting: Setting) -> list[Tensor]:
    """Return the differentiable outputs of a forward pass under autocast."""
    with torch.autocast(setting.device.type, setting.half):
        return [y for y in tree_leaves(model(x)) if isinstance(y, Tensor) and y.requires_grad]


def check_form(y: Tensor, joint: bool) -> None:
    """Check that the joint step ran if and only if it was asked for.

    For inputs that the joint step does not support, a block runs its separate form. A check that did not notice would
    compare the separate form with itself.

    Raises:
        RuntimeError: another form ran.
    """
    if runs_joint(y) != joint:
        raise RuntimeError(f"the {JOINT if joint else SEPARATE} form was asked for, and another one ran")


def runs_joint(y: Tensor) -> bool:
    """Return whether the autograd graph of `y` contains the joint step."""
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if JOINT_NODE in type(node).__name__:
            return True
        todo += [following for following, _ in node.next_functions]
    return False


def built(yaml: str, setting: Setting, layout: str = "channels_last") -> nn.Module:
    """Return a model of ultralytics on the device, with the same weights every time."""
    from yolorep.hosts.ultralytics.build import build  # here: the checks of single blocks need no host

    torch.manual_seed(0)
    return build(yaml).to(setting.device).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]


def images(setting: Setting, batch: int, layout: str = "channels_last") -> Tensor:
    """Return noise as images, (batch, 3, side, side)."""
    side = TOY_MODEL if setting.toy else MODEL
    noise = torch.rand(1 if setting.toy else batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return noise.to(setting.device, memory_format=LAYOUTS[layout])


def train_step(
    model: nn.Module,
    x: Tensor,
    setting: Setting,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Run one step under autocast: forward, backward from the mean square of every output, optimizer."""
    model.zero_grad(set_to_none=True)
    outputs = outputs_of(model, x, setting)
    loss = torch.stack([y.float().square().mean() for y in outputs]).sum()
    (loss if scaler is None else scaler.scale(loss)).backward()
    if optimizer is not None and scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif optimizer is not None:
        optimizer.step()
