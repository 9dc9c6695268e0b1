"""Cost of a block in training, in units of YOLO's convolution + batch norm + SiLU: time of a step, and memory."""

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
AUTOCASTS: dict[str, torch.dtype | None] = {"none": None, "half": torch.float16, "bfloat16": torch.bfloat16}


class Shape(NamedTuple):
    """Shape of the block's input and output: (batch, channels, size, size)."""

    batch: int
    channels: int
    size: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """Parse 'BATCHxCHANNELSxSIZE'.

        Raises:
            UsageError: `text` is not three positive integers.

        Example:
            >>> Shape.of("8x64x32")
            Shape(batch=8, channels=64, size=32)
        """
        numbers = text.split("x")
        if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
            raise UsageError(f"shape {text!r} is not accepted; write batch, channels and size as in 8x64x64")
        return cls(*map(int, numbers))

    def __str__(self) -> str:
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Memory:
    """Bytes of activations.

    kept: saved by the forward pass for the backward pass, the input included where it is saved. peak: largest amount
    allocated at one time during a step, without parameters, their gradients and the input.
    """

    kept: int
    peak: int


@dataclass(frozen=True)
class Cost:
    """Cost of the forms of one block at one shape.

    parameters: number in training and number after deploy. timing: training step of each form. latency: forward pass
    of the deployed block and of the deployed stock block. autocast: a key of `AUTOCASTS`.
    """

    block: str
    shape: Shape
    layout: str
    parameters: tuple[int, int]
    timing: Timing
    latency: Timing
    memory: dict[str, Memory]
    autocast: str = "none"


def default_autocast(device: torch.device) -> str:
    """Return the autocast that both hosts train with by default: half on a GPU, none on a CPU."""
    return "half" if device.type == "cuda" else "none"


def forms_of(block: str, channels: int, *, compiled: bool) -> dict[str, nn.Module]:
    """Return the stock block, and `block` in its separate, joint and compiled forms, in training mode.

    The joint form is left out where the block has none, the compiled form without `compiled`.
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
    autocast: str = "none",
    after_round: Callable[[], object] = lambda: None,
) -> Cost:
    """Time one training step of every form, interleaved, and measure its memory.

    A step drops the gradients, runs forward (under `autocast`) and runs backward down to the input.

    Raises:
        BlockError: there is no such block, or it does not take that number of channels.
    """
    memory_format: Any = LAYOUTS[layout]
    forms = {
        k: form.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        for k, form in forms_of(block, shape.channels, compiled=compiled).items()
    }
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size)
    # In a network under autocast the input of a block is the output of another one, in the narrow dtype.
    x = x.to(device, AUTOCASTS[autocast] or torch.float32, memory_format=memory_format).requires_grad_()
    gradient = torch.randn_like(x)
    forwards = {name: partial(_forward, form, x, AUTOCASTS[autocast]) for name, form in forms.items()}
    steps = {name: _step(form, forwards[name], x, gradient) for name, form in forms.items()}
    memory = {name: Memory(kept_bytes(forwards[name]), peak_bytes(steps[name], device)) for name in forms}
    timing = interleave(steps, rounds, device, after_round=after_round)
    latency = _latency({STOCK: forms[STOCK], DEPLOYED: forms[SEPARATE]}, x, rounds)
    return Cost(block, shape, layout, _parameters(forms[SEPARATE]), timing, latency, memory, autocast)


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Return the bytes of distinct storages that a forward pass saves for the backward pass, without parameters."""
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
    """Return the largest number of bytes allocated at one time during a step, beyond those allocated before it."""
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


def _forward(form: nn.Module, x: Tensor, autocast: torch.dtype | None) -> Tensor:
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        return form(x)


def _step(form: nn.Module, forward: Callable[[], Tensor], x: Tensor, gradient: Tensor) -> Callable[[], None]:
    def step() -> None:
        form.zero_grad(set_to_none=True)
        x.grad = None
        y = forward()
        y.backward(gradient.to(y.dtype))

    return step


def _joint_or_not(block: Conv_C3, joint: bool) -> Conv_C3:
    copy = deepcopy(block)
    copy.joint = joint
    return copy


def _latency(blocks: dict[str, nn.Module], x: Tensor, rounds: int) -> Timing:
    calls = {name: partial(_deployed(block).to(x.dtype), x.detach()) for name, block in blocks.items()}
    with torch.inference_mode():
        return interleave(calls, rounds, x.device)


def _parameters(block: nn.Module) -> tuple[int, int]:
    """Return the number of parameters in training, and in the convolution that deploy leaves."""
    return tuple(sum(p.numel() for p in m.parameters()) for m in (block, _deployed(block)))  # type: ignore[return-value]


def _deployed(block: nn.Module) -> nn.Module:
    deployed = deepcopy(block).eval()
    deployed._switch_to_deploy()  # type: ignore[operator]
    return deployed
