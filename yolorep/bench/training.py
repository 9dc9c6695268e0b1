"""What training a block costs beside YOLO's convolution, batch norm and SiLU: time of a step, and memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from yolorep.bench.measure import LAYOUTS
from yolorep.bench.timing import Timing, interleave
from yolorep.blocks import Conv_C3
from yolorep.errors import UsageError

STOCK, SEPARATE, JOINT, COMPILED, DEPLOYED = "stock", "separate", "joint", "compiled", "deployed"


class Shape(NamedTuple):
    """Of the block's input and output: (batch, channels, size, size)."""

    batch: int
    channels: int
    size: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """From 'batch x channels x size', as in 8x64x64.

        Raises:
            UsageError: it is not three whole numbers above 0.
        """
        numbers = text.split("x")
        if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
            raise UsageError(f"shape {text!r} is not accepted; write batch, channels and size as in 8x64x64")
        return cls(*map(int, numbers))

    def __str__(self) -> str:
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Memory:
    """Bytes. kept: what the forward pass leaves for the backward pass. peak: the most that a step holds at a time.

    Both without parameters, their gradients and the input, which `kept` counts where it is kept.
    """

    kept: int
    peak: int


@dataclass(frozen=True)
class Cost:
    """One block, or several forms of it, at one shape; the unit is `STOCK`.

    parameters: trained, and once deployed. timing: of a training step of each form. latency: of a forward pass of what
    is deployed, the block and stock.
    """

    block: str
    shape: Shape
    layout: str
    parameters: tuple[int, int]
    timing: Timing
    latency: Timing
    memory: dict[str, Memory]


def forms_of(block: str, channels: int, *, compiled: bool) -> dict[str, nn.Module]:
    """The stock block, and `block` with its branches each on their own, in one step, and compiled.

    The joint form is left out where the block has none.
    """
    torch.manual_seed(0)
    act = nn.SiLU()
    rep = Conv_C3(channels, channels, act=act, block=block).train()
    forms: dict[str, nn.Module] = {STOCK: Conv_C3(channels, channels, act=act, block="plain").train()}
    forms[SEPARATE] = _joint_or_not(rep, False)
    if rep.law == "each" and any(True for _ in rep.branches()):
        forms[JOINT] = _joint_or_not(rep, True)
    if compiled:
        forms[COMPILED] = torch.compile(_joint_or_not(rep, True))  # type: ignore[assignment]
    return forms


def cost(
    block: str,
    shape: Shape,
    layout: str,
    device: torch.device,
    rounds: int,
    *,
    compiled: bool = False,
    after_round: Callable[[], object] = lambda: None,
) -> Cost:
    """Time one training step of every form, interleaved, and measure its memory.

    A step is forward, backward down to the input, and gradients dropped before it as an optimizer does.

    Raises:
        BlockError: no such block, or none of these channels.
    """
    memory_format: Any = LAYOUTS[layout]
    forms = {
        k: form.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        for k, form in forms_of(block, shape.channels, compiled=compiled).items()
    }
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size).to(device, memory_format=memory_format)
    x.requires_grad_()
    gradient = torch.randn_like(x)
    steps = {name: _step(form, x, gradient) for name, form in forms.items()}
    memory = {
        name: Memory(kept_bytes(partial(form, x)), peak_bytes(steps[name], device)) for name, form in forms.items()
    }
    timing = interleave(steps, rounds, device, after_round=after_round)
    latency = _latency({STOCK: forms[STOCK], DEPLOYED: forms[SEPARATE]}, x, rounds)
    return Cost(block, shape, layout, _parameters(forms[SEPARATE]), timing, latency, memory)


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Of the distinct storages that a forward pass saves for the backward pass, parameters not among them."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = forward()  # until the end, so that no address is used twice
    del alive
    return sum(storages.values())


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that a step has allocated at a time, beyond what was there before it."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def _step(form: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], None]:
    def step() -> None:
        form.zero_grad(set_to_none=True)
        x.grad = None
        form(x).backward(gradient)

    return step


def _joint_or_not(block: Conv_C3, joint: bool) -> Conv_C3:
    copy = deepcopy(block)
    copy.joint = joint
    return copy


def _latency(blocks: dict[str, nn.Module], x: Tensor, rounds: int) -> Timing:
    calls = {name: partial(_deployed(block), x.detach()) for name, block in blocks.items()}
    with torch.inference_mode():
        return interleave(calls, rounds, x.device)


def _parameters(block: nn.Module) -> tuple[int, int]:
    """Trained, and of the convolution that is left."""
    return tuple(sum(p.numel() for p in m.parameters()) for m in (block, _deployed(block)))  # type: ignore[return-value]


def _deployed(block: nn.Module) -> nn.Module:
    deployed = deepcopy(block).eval()
    deployed._switch_to_deploy()  # type: ignore[operator]
    return deployed
