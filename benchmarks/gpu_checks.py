"""Proofs on blocks and models: parity of the forms, GradScaler, host synchronization, CUDA graphs, tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_rows import Found, Rows, Setting, SkipError, row
from benchmarks.gpu_steps import built, check_form, images, outputs_of, train_step, with_form
from yolorep import Conv_C3
from yolorep.bench.cuda_graphs import captured
from yolorep.bench.measure import LAYOUTS
from yolorep.bench.training import COMPILED, JOINT, SEPARATE
from yolorep.numerics import full_float32

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Relative to the largest value of a tensor; a smaller error is rounding in every form.
FLOOR = {"float32": 2e-6, "float16": 2e-4, "bfloat16": 2e-3}
RATIO = 3.0  # largest accepted error of a form / error of the separate form
# name → in, out, kernel, stride, block
CASES = {
    "same": (64, 64, 3, 1, "repvgg"),
    "stride 2": (64, 128, 3, 2, "repvgg"),
    "odd channels": (72, 40, 3, 2, "repvgg"),
    "1x1": (64, 64, 1, 1, "repvgg"),
    "wide": (512, 512, 3, 1, "repvgg"),
    "mobileone": (64, 64, 3, 1, "mobileone"),
    "acb": (64, 64, 3, 1, "acb"),
}
TOY_CASES = ("same", "stride 2")


# Parity --------------------------------------------------------------------------------------------------------------


def parity(setting: Setting) -> Rows:
    """Compare outputs, gradients and running statistics of every form with the separate form in float64."""
    for name, layout, precision in product(TOY_CASES if setting.toy else CASES, LAYOUTS, PRECISIONS):
        forms = [SEPARATE, JOINT, *([COMPILED] if name == "same" else [])]
        yield row(f"{name}, {layout}, {precision}", partial(_parity, setting, CASES[name], layout, precision, forms))
    yield row("backward inside autocast", partial(_backward_inside_autocast, setting))


def _parity(setting: Setting, case: tuple[Any, ...], layout: str, precision: str, forms: list[str]) -> Found:
    if precision == "float16" and not setting.cuda:
        raise SkipError("a CPU has no fast float16")
    c1, c2, k, s, block = case
    memory_format, autocast = LAYOUTS[layout], PRECISIONS[precision]
    torch.manual_seed(0)
    made = Conv_C3(c1, c2, k, s, block=block).to(setting.device).train()
    made = made.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(4, c1, 35, 33) * 1.5 + 0.7
    x = x.to(autocast or torch.float32).to(setting.device, memory_format=memory_format)
    with torch.no_grad():
        gradient = torch.randn_like(deepcopy(made)(x.float()))
    errors: dict[str, dict[str, float]] = {}
    with full_float32():
        expected = _pass(with_form(made, SEPARATE, setting).double(), x.double(), gradient.double(), None)
        for form in forms:
            got = _pass(with_form(made, form, setting), x, gradient, autocast, joint=form == JOINT)
            errors[form] = _errors(expected, got)
    return _judged(errors, FLOOR[precision])


def _judged(errors: dict[str, dict[str, float]], floor: float) -> Found:
    """Compare the error of every tensor with the separate form's error."""
    worst: dict[str, tuple[float, str]] = {}
    for form, found in errors.items():
        ratios = {name: error / max(errors[SEPARATE][name], floor) for name, error in found.items()}
        name = max(ratios, key=lambda key: ratios[key] if ratios[key] == ratios[key] else float("inf"))
        worst[form] = ratios[name], name
    ok = all(ratio < RATIO for form, (ratio, _) in worst.items())
    told = [f"{form} {ratio:.2f} at {name}" for form, (ratio, name) in worst.items() if form != SEPARATE]
    text = f"error / error of {SEPARATE}: {', '.join(told)}"
    return Found(ok, text, {"errors": errors, "floor": floor, "accepted_ratio": RATIO})


def _pass(
    block: nn.Module, x: Tensor, gradient: Tensor, autocast: torch.dtype | None, *, joint: bool = False
) -> dict[str, Tensor]:
    """Run forward and backward once and return output, gradients and buffers in float64."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        y = block(x)
    check_form(y, joint)
    y.backward(gradient.to(y.dtype))
    found = {"output": y, "gradient of x": x.grad}
    found |= {f"gradient of {name}": p.grad for name, p in block.named_parameters()}
    found |= dict(block.named_buffers())
    return {name.replace("_orig_mod.", ""): value.detach().double() for name, value in found.items()}


def _errors(expected: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of every tensor, relative to its largest value; gradients share one scale."""
    top = max(float(v.abs().max()) for name, v in expected.items() if name.startswith("gradient of "))
    errors = {}
    for name, value in expected.items():
        scale = max(
            float(value.abs().max()), top if name.startswith("gradient of ") and name != "gradient of x" else 0, 1e-30
        )
        errors[name] = float((value - got[name]).abs().max()) / scale
    return errors


def _backward_inside_autocast(setting: Setting) -> Found:
    """Run a float32 forward whose backward is inside autocast, in every form."""
    for form in (SEPARATE, JOINT):
        torch.manual_seed(0)
        block = with_form(Conv_C3(16, 16).to(setting.device).train(), form, setting)
        x = torch.randn(8, 16, 64, 64, device=setting.device, requires_grad=True)
        y = block(x)
        check_form(y, form == JOINT)
        with torch.autocast(setting.device.type, setting.half):
            y.square().mean().backward()
        if not all(bool(torch.isfinite(p.grad).all()) for p in block.parameters() if p.grad is not None):
            return Found(False, f"the {form} form has gradients that are not finite", {})
    return Found(True, "separate and joint", {})


# Loss scaling, synchronization, graphs -------------------------------------------------------------------------------


def gradscaler(setting: Setting) -> Rows:
    """Check that GradScaler skips a step whose gradients overflow, and does not skip an ordinary one."""
    for form in (SEPARATE, JOINT):
        yield row(form, partial(_gradscaler, setting, form))


def _gradscaler(setting: Setting, form: str) -> Found:
    torch.manual_seed(0)
    block = with_form(Conv_C3(16, 16).to(setting.device).train(), form, setting)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x = torch.randn(8, 16, 64, 64, device=setting.device).to(setting.half)
    changed, scales = {}, {}
    for case, factor in (("overflow", 1e38), ("ordinary", 1e-3)):
        scaler = torch.amp.GradScaler(setting.device.type, init_scale=2.0**10)
        before = [p.detach().clone() for p in block.parameters()]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, setting.half):
            y = block(x)
        check_form(y, form == JOINT)
        scaler.scale((y.float() * factor).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        changed[case] = any(not torch.equal(a, b) for a, b in zip(before, block.parameters(), strict=True))
        scales[case] = scaler.get_scale()
    ok = not changed["overflow"] and changed["ordinary"] and scales["overflow"] < 2.0**10 == scales["ordinary"]
    text = f"step skipped on overflow: {not changed['overflow']}, on ordinary gradients: {not changed['ordinary']}"
    return Found(ok, text, {"scale": scales})


def synchronization(setting: Setting) -> Rows:
    """Run training steps with CUDA's synchronization check set to raise."""
    for form, (what, made) in product((SEPARATE, JOINT), _subjects(setting).items()):
        yield row(f"{what}, {form}", partial(_synchronization, setting, form, made))


def _synchronization(setting: Setting, form: str, made: Callable[[], tuple[nn.Module, Tensor]]) -> Found:
    setting.need_cuda()
    model, x = made()
    model = with_form(model, form, setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, foreach=True)
    step = partial(train_step, model, x, setting, optimizer)
    check_form(outputs_of(model, x, setting)[0], form == JOINT)
    step()  # choice of algorithms, first allocations and the optimizer's state may synchronize
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return Found(False, f"synchronizes: {str(error).splitlines()[0]}", {})
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return Found(True, "no synchronization in forward, backward and optimizer step", {})


def graph_capture(setting: Setting) -> Rows:
    """Capture training steps in a CUDA graph, and compare the gradients of a replay with an eager step's."""
    for form, (what, made) in product((SEPARATE, JOINT), _subjects(setting).items()):
        yield row(f"{what}, {form}", partial(_graph_capture, setting, form, made))


def _graph_capture(setting: Setting, form: str, made: Callable[[], tuple[nn.Module, Tensor]]) -> Found:
    setting.need_cuda()
    model, x = made()
    model = with_form(model, form, setting)
    step = partial(train_step, model, x, setting)
    check_form(outputs_of(model, x, setting)[0], form == JOINT)
    step()
    expected = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    replay, _ = captured(step)
    replay()
    torch.cuda.synchronize()
    top = max(float(value.abs().max()) for value in expected.values())
    errors = [float((p.grad.double() - expected[n]).abs().max()) for n, p in model.named_parameters() if n in expected]
    error = max(errors) / top
    return Found(error < 1e-2, f"captured; gradients differ by {error:.1e} from an eager step", {"error": error})


def _subjects(setting: Setting) -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Return a block, and a whole model, each with its input."""

    def block() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return Conv_C3(64, 64).to(setting.device).train(), torch.randn(4, 64, 80, 80, device=setting.device).to(
            setting.half
        )

    def model() -> tuple[nn.Module, Tensor]:
        return built("yolov5n-rep.yaml", setting).train(), images(setting, 4)

    return {"block": block, "yolov5n-rep": model}


# Tests ---------------------------------------------------------------------------------------------------------------


def tests(setting: Setting) -> Rows:
    """Run the project's tests that use a GPU; at toy size one test, to see that the runner works."""
    files = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "tests").rglob("test_*.py") if "cuda" in f.read_text())
    if setting.toy:
        files = ["tests/models/test_devices.py::test_fold_keeps_device_and_memory_format"]
    yield row("pytest", partial(_pytest, files, setting))


def _pytest(files: list[str], setting: Setting) -> Found:
    if not files:
        raise SkipError("the checkout has no tests")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["pytest printed nothing"]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])}
    ok = done.returncode == 0 and counts.get("passed", 0) > 0
    return Found(ok, lines[-1].strip("= "), {"counts": counts, "files": files, "tail": [] if ok else lines[-60:]})
