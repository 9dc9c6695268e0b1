"""Timings on a GPU: training steps of blocks and models, kernel launches, inference with and without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_rows import Found, Rows, Setting, SkipError, row
from benchmarks.gpu_steps import built, check_form, images, outputs_of, train_step, with_form
from yolorep import Conv_C3
from yolorep.bench.cuda_graphs import captured
from yolorep.bench.measure import LAYOUTS, PRECISIONS
from yolorep.bench.subjects import DEPLOYED, STOCK, UNFUSED, of_model
from yolorep.bench.timing import Timing, interleave
from yolorep.bench.training import COMPILED, JOINT, SEPARATE, Shape, cost

STOCK_AGAIN, COMPILED_STOCK = "stock again", "compiled stock"
SHAPES = ("16x32x160", "16x128x40", "64x256x20")
BLOCKS = ("repvgg", "orepa", "qarepvgg")
AUTOCAST = "autocast"


def block_steps(setting: Setting) -> Rows:
    """Time one training step of a block under autocast, in units of stock."""
    shapes = ("1x16x128",) if setting.toy else SHAPES
    for block, shape, layout in product(BLOCKS, shapes, ("channels_last", "contiguous")):
        yield row(f"{block}, {shape}, {layout}", partial(_block_step, setting, block, shape, layout))


def _block_step(setting: Setting, block: str, shape: str, layout: str) -> Found:
    autocast = "half" if setting.cuda else "bfloat16"
    found = cost(block, Shape.of(shape), layout, setting.device, rounds(setting), autocast=autocast)
    memory = {form: asdict(value) for form, value in found.memory.items()}
    return timed(found.timing, STOCK, {AUTOCAST: autocast, "memory": memory})


def launches(setting: Setting) -> Rows:
    """Count ATen calls, and kernels on a GPU, of one training step of a block."""
    channels, side = (8, 128) if setting.toy else (64, 80)
    forms = {"stock": ("plain", SEPARATE), "separate": ("repvgg", SEPARATE), "joint": ("repvgg", JOINT)}
    for name, (block, form) in {**forms, "orepa": ("orepa", SEPARATE), "qarepvgg": ("qarepvgg", SEPARATE)}.items():
        yield row(f"{name}, {channels} channels", partial(_launches, setting, block, form, channels, side))


def _launches(setting: Setting, block: str, form: str, channels: int, side: int) -> Found:
    torch.manual_seed(0)
    model = with_form(Conv_C3(channels, channels, block=block).to(setting.device).train(), form, setting)
    x = torch.randn(2, channels, side, side, device=setting.device).to(setting.half).requires_grad_()
    check_form(outputs_of(model, x, setting)[0], form == JOINT)
    step = partial(train_step, model, x, setting)
    step()
    with Counted() as counted:
        step()
    values: dict[str, Any] = {"aten_calls": counted.calls, AUTOCAST: str(setting.half)}
    if setting.cuda:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
        kernels = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
        values |= {"kernels": len(kernels), "gpu_us": sum(event.time_range.elapsed_us() for event in kernels)}
    text = f"{counted.calls} ATen calls" + (f", {values['kernels']} kernels" if setting.cuda else "")
    return Found(None, text, values)


class Counted(TorchDispatchMode):
    """Counts ATen calls, forward and backward."""

    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def model_steps(setting: Setting) -> Rows:
    """Time whole training steps: stock twice (the difference is the noise), separate and joint."""
    for scale, batch in product("n" if setting.toy else "ns", (1,) if setting.toy else (16, 64)):
        forms = [STOCK, SEPARATE, JOINT, STOCK_AGAIN]
        yield row(f"yolov5{scale}-rep, batch {batch}", partial(_model_steps, setting, scale, batch, forms))


def compiled_steps(setting: Setting) -> Rows:
    """Time whole training steps under torch.compile beside eager stock; last, because compilation takes minutes."""
    for scale, batch in (("n", 1),) if setting.toy else (("n", 16), ("s", 64)):
        forms = [STOCK, COMPILED] if setting.toy else [STOCK, COMPILED_STOCK, COMPILED, STOCK_AGAIN]
        yield row(f"yolov5{scale}-rep, batch {batch}", partial(_model_steps, setting, scale, batch, forms))


def _model_steps(setting: Setting, scale: str, batch: int, forms: list[str]) -> Found:
    torch.backends.cudnn.benchmark = True  # as ultralytics trains when deterministic=False
    x = images(setting, batch)
    steps, peaks = {}, {}
    for form in forms:
        yaml = f"yolov5{scale}.yaml" if "stock" in form else f"yolov5{scale}-rep.yaml"
        model = with_form(built(yaml, setting).train(), COMPILED if COMPILED in form else form, setting)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, foreach=True)
        scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.cuda)
        steps[form] = partial(train_step, model, x, setting, optimizer, scaler)
        peaks[form] = _peak_gib(steps[form], setting)
    timing = interleave(steps, rounds(setting), setting.device)
    values = {AUTOCAST: str(setting.half), "batch": len(x), "pixels": x.shape[-1], "peak_gib": peaks}
    return timed(timing, STOCK, values)


def _peak_gib(step: Callable[[], None], setting: Setting) -> float | None:
    """Return the peak memory of a step, with the model's parameters, gradients and optimizer state."""
    step()
    if not setting.cuda:
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def inference(setting: Setting) -> Rows:
    """Time unfused, deployed and stock models, eager and as CUDA graphs, which have no launch gaps."""
    scales, batches = ("n", (1,)) if setting.toy else ("ns", (1, 32))
    for scale, batch, precision in product(scales, batches, PRECISIONS):
        case = f"yolov5{scale}-rep, batch {batch}, {precision}"
        yield row(case, partial(_inference, setting, f"yolov5{scale}-rep", batch, precision))


def _inference(setting: Setting, name: str, batch: int, precision: str) -> Found:
    if precision == "half" and not setting.cuda:
        raise SkipError("a CPU has no fast float16")
    torch.backends.cudnn.benchmark = True
    dtype, layout = PRECISIONS[precision], LAYOUTS["channels_last"]
    x = images(setting, batch).to(dtype)
    forms = of_model(name, built(f"{name}.yaml", setting).eval().cpu()).forms
    calls: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        for form, module in forms.items():
            placed = module.to(setting.device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
            calls[form] = partial(placed, x)
        graphs = {f"{form}, graph": _replayed(call) for form, call in calls.items()} if setting.cuda else {}
        timing = interleave({**calls, **graphs}, rounds(setting), setting.device)
    reference = f"{DEPLOYED}, graph" if graphs else DEPLOYED
    values = {AUTOCAST: None, "precision": precision, "layout": "channels_last", "batch": len(x)}
    return timed(timing, reference, {**values, "forms": [UNFUSED, DEPLOYED, STOCK], "without_graph": list(calls)})


def _replayed(call: Callable[[], object]) -> Callable[[], None]:
    """Return the replay of a call; its static output lives as long as the replay."""
    replay, output = captured(call)

    def run(_output: object = output) -> None:
        replay()

    return run


def timed(timing: Timing, reference: str, values: dict[str, Any]) -> Found:
    """Return the row of a timing: median milliseconds, ratios to `reference`, and every sample."""
    ratios = {form: asdict(timing.ratio(form, reference)) for form in timing.seconds}
    milliseconds = {form: timing.time(form).median * 1e3 for form in timing.seconds}
    told = ", ".join(f"{form} {ratio['median']:.2f}" for form, ratio in ratios.items() if form != reference)
    text = f"{reference} {milliseconds[reference]:.2f} ms; in its units: {told}"
    found = {"reference": reference, "ms": milliseconds, "ratios": ratios, "seconds": timing.seconds}
    return Found(None, text, {**found, "calls_per_sample": timing.calls, "flags": timing.flags, **values})


def rounds(setting: Setting) -> int:
    """Return the number of interleaved rounds."""
    return 2 if setting.toy else 8
