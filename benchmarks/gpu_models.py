"""Proofs on whole models: deploy, verify and half precision on the device; the commands from training to detection."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_rows import Found, Rows, Setting, SkipError, row
from benchmarks.gpu_steps import built, images
from yolorep import deploy, verify
from yolorep.errors import YolorepError
from yolorep.hosts.predictions import TASKS, Answer, compare
from yolorep.numerics import full_float32

HALF_ERROR = 0.05  # largest accepted error of half precision, relative to the largest output


def deployment(setting: Setting) -> Rows:
    """Deploy, verify and run in half precision, on the device."""
    yield row("deploy and verify, float32", partial(_deploy, setting))
    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        yield row(f"deployed against rep, {name}", partial(_narrow, setting, dtype))


def _deploy(setting: Setting) -> Found:
    rep = trained_(built("yolov5n-rep.yaml", setting)).eval()
    deployed = deploy(rep)
    elsewhere = [n for n, p in deployed.named_parameters() if p.device.type != setting.device.type]
    report = verify(rep, deployed)
    ok = report.ok and not elsewhere
    text = f"largest relative error {report.max_rel:.1e} over {len(report.rows) - 1} blocks"
    return Found(ok, text, {"max_rel": report.max_rel, "tolerance": report.tolerance, "elsewhere": elsewhere})


def _narrow(setting: Setting, dtype: torch.dtype) -> Found:
    if dtype is torch.float16 and not setting.cuda:
        raise SkipError("a CPU has no fast float16")
    rep, x = trained_(built("yolov5n-rep.yaml", setting)).eval(), images(setting, 2)
    with torch.no_grad(), full_float32():
        expected = _first(rep(x))
        errors = {
            name: _relative(expected, _first(model.to(dtype)(x.to(dtype))))
            for name, model in (("rep", deepcopy(rep)), ("deployed", deploy(rep)))
        }
    ok = all(error < HALF_ERROR for error in errors.values())
    text = f"error against float32: rep {errors['rep']:.1e}, deployed {errors['deployed']:.1e}"
    return Found(ok, text, {"errors": errors})


def commands(setting: Setting) -> Rows:
    """Train with the host's defaults, deploy, verify and detect in half precision, through the command line."""
    with TemporaryDirectory() as folder, working_in(Path(folder)):
        from yolorep.demo import scenes

        side, train, val = (32, 4, 2) if setting.toy else (160, 96, 16)
        data = scenes.make(Path("data"), train=train, val=val, side=side)
        device = str(setting.device.index or 0) if setting.cuda else "cpu"
        yield from _ultralytics(data, side, device, setting)
        if not setting.toy:
            yield from _yolov5(data, side, device)


def _ultralytics(data: Path, side: int, device: str, setting: Setting) -> Rows:
    common = [f"imgsz={side}", f"device={device}", f"project={Path.cwd()}"]
    epochs = ["epochs=1", "workers=0", "batch=4"] if setting.toy else ["epochs=3", "batch=16"]
    train = ["train", "model=yolov5n-rep.yaml", f"data={data}", "name=run", "plots=False", *epochs, *common]
    best = Path("run/weights/best.pt")
    yield row("yolorep train (ultralytics, amp by default)", partial(_run, train, best))
    if not best.is_file():
        return
    deployed = Path("deployed.pt")
    yield row("yolorep deploy", partial(_run, ["deploy", str(best), str(deployed)], deployed))
    yield row("yolorep verify", partial(_run, ["verify", str(best), str(deployed)]))
    half = [f"half={setting.cuda}", *common]
    for model in (best, deployed):
        predict = ["predict", f"model={model}", "source=data/images/val", f"name=seen-{model.stem}", *half]
        yield row(
            f"yolorep predict {model.name}, half={setting.cuda}", partial(_run, predict, Path(f"seen-{model.stem}"))
        )
    yield row("boxes on the device, rep against deployed", partial(_boxes, best, deployed, side, device))


def _yolov5(data: Path, side: int, device: str) -> Rows:
    common = ["--imgsz", str(side), "--device", device, "--project", "y5"]
    train = ["yolov5", "train.py", "--cfg", "yolov5n-rep.yaml", "--weights", "", "--data", str(data), "--epochs", "2"]
    best = Path("y5/run/weights/best.pt")
    yield row("yolorep yolov5 train.py", partial(_run, [*train, "--name", "run", "--noplots", *common], best))
    if not best.is_file():
        return
    detect = ["yolov5", "detect.py", "--weights", str(best), "--source", "data/images/val", "--half", "--name", "seen"]
    yield row("yolorep yolov5 detect.py --half", partial(_run, [*detect, *common], Path("y5/seen")))


def _run(arguments: Sequence[str], expected: Path | None = None) -> Found:
    """Run one command in this process. expected: a file or folder that it has to make."""
    from yolorep.cli import app

    with Path("log.txt").open("a+") as log:
        start, arguments_before = log.tell(), list(sys.argv)
        try:
            with redirect_stdout(log), redirect_stderr(log):
                code = app(list(arguments), standalone_mode=False) or 0
        except SystemExit as end:
            code = end.code or 0
        except YolorepError as error:
            if "not installed" in str(error) or "no YOLOv5 tree" in str(error):
                raise SkipError(str(error)) from None
            raise
        finally:
            sys.argv[:] = arguments_before  # ultralytics looks there whether it was started from the command line
        log.flush()
        log.seek(start)
        printed = log.read().strip().splitlines()[-30:]
    missing = expected is not None and not expected.exists()
    ok = code == 0 and not missing
    text = "done" if ok else f"exit code {code}" + f", {expected} is missing" * missing
    return Found(ok, text, {"arguments": list(arguments), "printed": [] if ok else printed})


def _boxes(best: Path, deployed: Path, side: int, device: str) -> Found:
    """Compare the boxes of the rep checkpoint, which the host fuses, with the deployed checkpoint's, in float32."""
    from ultralytics import YOLO

    found: list[list[Answer]] = []
    with full_float32():
        for path in (best, deployed):
            results = YOLO(path).predict("data/images/val", imgsz=side, device=device, verbose=False, conf=0.001)
            boxes = [result.cpu().boxes for result in results]
            found.append([{"class": b.cls, "position": b.xyxy, "confidence": b.conf} for b in boxes])
    report = compare(TASKS["detect"], zip(*found, strict=True))
    return Found(report.ok, str(report), {})


def trained_(model: nn.Module) -> nn.Module:
    """Give every batch norm random statistics and an affine map, as training leaves them."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
            for value, low, high in ((norm.weight, 0.5, 1.2), (norm.bias, -0.2, 0.2)):
                value.copy_(torch.rand(value.shape, generator=random) * (high - low) + low)
            norm.running_mean.copy_(torch.rand(norm.running_mean.shape, generator=random) * 0.2 - 0.1)
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=random) + 0.5)
    return model


def _first(outputs: object) -> Tensor:
    """Return the decoded predictions, the first tensor of a detector's outputs."""
    return next(y for y in tree_leaves(outputs) if isinstance(y, Tensor)).float()


def _relative(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).abs().max() / expected.abs().max())


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
