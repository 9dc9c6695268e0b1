"""Each backend of `yolorep bench` beside the same runtime used by hand, as its own documentation says.

    python -m benchmarks by-hand yolov5s.yaml --imgsz 640

By hand, the stock network is exported by ultralytics and run with a few lines per runtime. yolorep gets the same
weights with branches, deploys them and runs its own backends. All of them are timed in turns in one process, one
image, float32 unless the backend says otherwise. Weights are random: nothing here is about accuracy.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.runner import Recorder
from yolorep.bench.backends.job import Job, Predictions
from yolorep.bench.backends.table import BACKENDS
from yolorep.bench.record import torch_flags
from yolorep.bench.subjects import as_loaded
from yolorep.bench.timing import interleave
from yolorep.deployment import deploy
from yolorep.errors import UsageError
from yolorep.expansion import expand
from yolorep.hosts.ultralytics.build import build, quiet

HAND, OURS, DETECT = "by hand", "yolorep", "eager, by hand"
Call = Callable[[], object]
ByHand = Callable[[Any, Tensor, int], Call]  # (ultralytics' YOLO of the stock checkpoint, image, threads)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("network", nargs="?", default="yolov5s.yaml")
    parser.add_argument("--backends", nargs="+", choices=BY_HAND, default=list(BY_HAND))
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=15)
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Time, print a line per backend and write the record.

    Raises:
        UsageError: a GPU is asked for, or no backend is installed.
    """
    device = torch.device(options.device)
    if device.type != "cpu":
        raise UsageError(f"by-hand times the runtimes of a CPU, not of {options.device}")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    missing = {name: why for name in options.backends if (why := BACKENDS[name].missing(device))}
    names = [name for name in options.backends if name not in missing]
    if "eager" not in names:
        raise UsageError("--backends has no eager, which the others are compared with")
    torch.manual_seed(0)
    images = torch.rand(1, 3, options.imgsz, options.imgsz)
    with TemporaryDirectory(prefix="yolorep-bench-") as root, torch.inference_mode(), quiet():
        calls, refused = calls_of(names, options.network, images, Path(root))
        timing = interleave(calls, options.rounds, device)
    missing |= refused
    for name, why in missing.items():
        print(f"{name}: {why}")
    rows = {}
    for name in [name for name in names if name not in refused]:
        hand, ours = f"{name}, {HAND}", f"{name}, {OURS}"
        rows[name] = {
            "seconds": {form: asdict(timing.time(f"{name}, {form}")) for form in (HAND, OURS)},
            "time_by_hand / time": asdict(timing.ratio(hand, ours)),
            "speed_up": {form: asdict(timing.ratio(DETECT, f"{name}, {form}")) for form in (HAND, OURS)},
        }
        faster, times = timing.ratio(hand, ours), [timing.ratio(DETECT, one).median for one in (hand, ours)]
        print(
            f"{name:14} by hand {times[0]:.2f} x eager, yolorep {times[1]:.2f} x; by hand / yolorep {faster.median:.3f}"
        )
    settings = {key: getattr(options, key) for key in ("network", "imgsz", "rounds")}
    recorder.write({**settings, "autocast": None, "missing": missing, "results": rows}, flags=torch_flags())


def calls_of(names: list[str], network: str, images: Tensor, root: Path) -> tuple[dict[str, Call], dict[str, str]]:
    """Return two calls for each backend, by hand and yolorep's, and why others do not run on this machine."""
    from ultralytics import YOLO

    stock = build(network)
    with_branches = expand(stock, "repvgg")
    fused = as_loaded(deploy(with_branches.eval()).fuse(verbose=False))
    (root / OURS).mkdir()
    checkpoint: Any = YOLO(network)
    checkpoint.model = stock
    checkpoint.save(str(root / "stock.pt"))
    threads, found, refused = torch.get_num_threads(), dict[str, Call](), dict[str, str]()
    for name in names:
        model = Predictions(copy.deepcopy(fused).requires_grad_(False), first=True)
        job = Job(model, images, images, images.device, threads, root / OURS)
        try:
            ours = BACKENDS[name].start(job).call
        except UsageError as error:  # such as bfloat16 on a processor without
            refused[name] = str(error)
            continue
        found[f"{name}, {HAND}"] = BY_HAND[name](YOLO(root / "stock.pt"), images, threads)
        found[f"{name}, {OURS}"] = ours
    return found, refused


def _eager(yolo: Any, images: Tensor, _: int, *, dtype: Any = torch.float32, last: bool = False) -> Call:
    layout = torch.channels_last if last else torch.contiguous_format
    model = yolo.model.eval().fuse().to(dtype=dtype, memory_format=layout)
    x = images.to(dtype=dtype, memory_format=layout)
    return lambda: model(x)


def _compiled(yolo: Any, images: Tensor, _: int) -> Call:
    model = torch.compile(yolo.model.eval().fuse().to(memory_format=torch.channels_last))
    x = images.to(memory_format=torch.channels_last)
    return lambda: model(x)


def _onnxruntime(yolo: Any, images: Tensor, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(yolo.export(format="onnx", imgsz=images.shape[-1]), options)
    x = images.numpy()
    return lambda: session.run(None, {"images": x})


def _openvino(yolo: Any, images: Tensor, threads: int, *, precision: str = "f32") -> Call:
    import openvino

    file = next(Path(yolo.export(format="openvino", imgsz=images.shape[-1])).glob("*.xml"))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(file, "CPU", hints)
    x = images.numpy()
    return lambda: model(x)


def _openvino_int8(yolo: Any, images: Tensor, threads: int) -> Call:
    import nncf
    import openvino

    file = next(Path(yolo.export(format="openvino", imgsz=images.shape[-1])).glob("*.xml"))
    core, x = openvino.Core(), images.numpy()
    quantized = nncf.quantize(core.read_model(file), nncf.Dataset([x]), subset_size=1)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    model = core.compile_model(quantized, "CPU", hints)
    return lambda: model(x)


def _ncnn(yolo: Any, images: Tensor, threads: int) -> Call:
    import ncnn
    import numpy as np

    folder = Path(yolo.export(format="ncnn", imgsz=images.shape[-1]))
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))
    x = images[0].numpy()

    def call() -> object:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x))
            return np.array(extractor.extract("out0")[1])

    return call


BY_HAND: dict[str, ByHand] = {
    "eager": _eager,
    "channels_last": lambda yolo, images, threads: _eager(yolo, images, threads, last=True),
    "bfloat16": lambda yolo, images, threads: _eager(yolo, images, threads, dtype=torch.bfloat16, last=True),
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-bf16": lambda yolo, images, threads: _openvino(yolo, images, threads, precision="bf16"),
    "openvino-int8": _openvino_int8,
    "ncnn": _ncnn,
}
