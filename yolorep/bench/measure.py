"""The runs that were asked for: every subject at every batch, size, precision and memory format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

from yolorep.bench.subjects import Subjects
from yolorep.bench.timing import Timing, interleave
from yolorep.errors import UsageError, first_line

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "half": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Settings:
    """What to run. sizes: pixels of the square input. rounds: samples of each form. threads: None for torch's own."""

    batches: tuple[int, ...] = (1,)
    sizes: tuple[int, ...] = (640,)
    precisions: tuple[str, ...] = ("float32",)
    layouts: tuple[str, ...] = ("contiguous",)
    device: str = "cpu"
    rounds: int = 20
    threads: int | None = None


@dataclass(frozen=True)
class Result:
    """One subject under one set of conditions."""

    what: str
    batch: int
    size: int
    precision: str
    layout: str
    timing: Timing
    device: str = "cpu"


def bench(
    subjects: Subjects, settings: Settings, *, watch: Callable[[str], Callable[[], object]] = lambda _: lambda: None
) -> list[Result]:
    """Time the forms of one subject, interleaved, under each combination of the settings.

    watch: called with the name of each run; returns a function that is called after each round of that run.

    Raises:
        UsageError: a setting that is not accepted, or that the subject or the device cannot do.
    """
    device = checked(settings)
    for size in settings.sizes:
        if size % subjects.stride:
            raise UsageError(f"{subjects.name} takes sizes that are multiples of {subjects.stride}, not {size}")
    results = []
    with _conditions(settings):
        for precision, layout in product(settings.precisions, settings.layouts):
            forms = {name: _placed(form, device, precision, layout) for name, form in subjects.forms.items()}
            for batch, size in product(settings.batches, settings.sizes):
                name = f"{subjects.name}, batch {batch}, {size} px, {precision}, {layout}"
                x = torch.rand(batch, subjects.channels, size, size)
                x = x.to(device, PRECISIONS[precision], memory_format=LAYOUTS[layout])
                calls = {form: partial(module, x) for form, module in forms.items()}
                try:
                    timing = interleave(calls, settings.rounds, device, after_round=watch(name))
                except (RuntimeError, AssertionError) as error:  # memory, a precision, a size that it lacks or refuses
                    raise UsageError(f"{name}: {device} cannot run it: {first_line(error)}") from None
                results.append(Result(subjects.name, batch, size, precision, layout, timing, settings.device))
    return results


def best_device() -> str:
    """The first GPU, or else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _placed(form: nn.Module, device: torch.device, precision: str, layout: str) -> nn.Module:
    return in_layout_(deepcopy(form).to(device, PRECISIONS[precision]), LAYOUTS[layout])


def in_layout_(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Bring the parameters and buffers of four dimensions into a memory format in place; return the model.

    `Module.to(memory_format=...)` fails for models of older YOLOv5 trees, which have a buffer of five dimensions.

    Example:
        >>> conv = in_layout_(nn.Conv2d(3, 8, 3), torch.channels_last)
        >>> conv.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)
    return model


def checked(settings: Settings) -> torch.device:
    """The device that the settings name.

    Raises:
        UsageError: a setting that is not accepted, or that the device cannot do.
    """
    for name, accepted in (("precisions", PRECISIONS), ("layouts", LAYOUTS)):
        for value in getattr(settings, name):
            if value not in accepted:
                raise UsageError(f"{name.removesuffix('s')} {value!r} is unknown; accepted: {', '.join(accepted)}")
    if settings.rounds < 2 or min(*settings.batches, *settings.sizes, settings.threads or 1) < 1:
        raise UsageError("accepted: at least 2 rounds, and batch, size and threads of at least 1")
    return _device(settings)


def _device(settings: Settings) -> torch.device:
    try:
        device = torch.device(settings.device)
    except RuntimeError:
        device = torch.device("meta")
    gpus = torch.cuda.device_count()
    if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= gpus):
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
        raise UsageError(f"device {settings.device!r} is not here; accepted: {here}")
    if device.type == "cpu" and "half" in settings.precisions:
        raise UsageError("a CPU computes half precision by emulation; accepted on cpu: float32, bfloat16")
    if device.type == "cuda" and "bfloat16" in settings.precisions and not torch.cuda.is_bf16_supported():
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bfloat16; accepted: float32, half")
    return device


@contextmanager
def _conditions(settings: Settings) -> Iterator[None]:
    """The thread count asked for, cuDNN's choice of the fastest algorithm, and no gradients."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(settings.threads or threads)
    torch.backends.cudnn.benchmark = True
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
