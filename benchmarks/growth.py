"""Frames per second of a deployed network as the image, the batch and the network grow, below the peak of the machine.

    python -m benchmarks growth

Three series start from one point: sizes of the image, sizes of the batch, and networks. At every point the deployed
network runs in each backend, in turns with the multiplication of two square float32 matrices, whose speed is the peak
that a convolution can reach. Speeds are operations of the convolutions (torch's flop counter) in a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.runner import Recorder
from yolorep.bench.backends.job import Job, Predictions
from yolorep.bench.backends.table import BACKENDS
from yolorep.bench.record import torch_flags
from yolorep.bench.timing import Spread, interleave
from yolorep.deployment import deploy
from yolorep.errors import UsageError
from yolorep.hosts.ultralytics.build import build, quiet

PEAK = "matrix product"
SIDE = 2048  # of the matrices
SERIES = ("imgsz", "batch", "network")


@dataclass(frozen=True)
class Point:
    """One measurement. series: what grows. flops: of one call, all images. seconds: of one call, by backend."""

    series: str
    network: str
    imgsz: int
    batch: int
    flops: float
    seconds: dict[str, Spread]
    peak: float

    @property
    def speeds(self) -> dict[str, float]:
        """Return operations in a second, by backend."""
        return {name: self.flops / spread.median for name, spread in self.seconds.items() if name != PEAK}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--network", nargs="+", default=[f"yolov5{letter}-rep.yaml" for letter in "nsmlx"])
    parser.add_argument("--imgsz", nargs="+", type=int, default=[640, 160, 320, 960, 1280])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["channels_last", "onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=7)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Measure every point, print it, and write the record and its plot.

    Raises:
        UsageError: a backend is not installed.
    """
    device = torch.device(options.device)
    for missing in (BACKENDS[name].missing(device) for name in options.backends):
        if missing is not None:
            raise UsageError(missing)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    points: list[Point] = []
    for place in places(options):
        points.append(measured(*place, options))
        print(told(points[-1]), flush=True)
        plot = partial(draw, points)
        settings = {"rounds": options.rounds, "matrix": SIDE, "autocast": None}
        results = [asdict(point) | {"speeds": point.speeds} for point in points]
        recorder.write({**settings, "results": results}, flags=torch_flags(), also={".png": plot})


def places(options: argparse.Namespace) -> Iterator[tuple[str, str, int, int]]:
    """Yield series, network, size and batch; the first value of each option is the point where all series meet.

    Example:
        >>> for place in places(argparse.Namespace(network=["n"], imgsz=[640], batch=[1, 8])):
        ...     print(place)
        ('imgsz', 'n', 640, 1)
        ('batch', 'n', 640, 1)
        ('batch', 'n', 640, 8)
        ('network', 'n', 640, 1)
    """
    first = {"network": options.network[0], "imgsz": options.imgsz[0], "batch": options.batch[0]}
    for series in SERIES:
        values = getattr(options, series)
        for value in values if series == "network" else sorted(values):
            place: dict[str, Any] = {**first, series: value}
            yield series, place["network"], place["imgsz"], place["batch"]


def measured(series: str, network: str, imgsz: int, batch: int, options: argparse.Namespace) -> Point:
    """Return the measurement of one place."""
    device = torch.device(options.device)
    with quiet():
        model = deploy(build(network).float().eval()).fuse(verbose=False).requires_grad_(False)
    images = torch.rand(batch, 3, imgsz, imgsz)
    with TemporaryDirectory(prefix="yolorep-bench-") as root, torch.inference_mode(), quiet():
        flops = operations(model, images)
        job = Job(Predictions(model, first=True), images, images, device, torch.get_num_threads(), Path(root))
        calls = {name: BACKENDS[name].start(job).call for name in options.backends}
        one, other = (torch.rand(SIDE, SIDE, device=device) for _ in range(2))
        timing = interleave({**calls, PEAK: partial(torch.mm, one, other)}, options.rounds, device)
    seconds = {name: timing.time(name) for name in (*calls, PEAK)}
    return Point(series, network, imgsz, batch, flops, seconds, 2 * SIDE**3 / seconds[PEAK].median)


def operations(model: nn.Module, images: torch.Tensor) -> float:
    """Return the floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops())


def told(point: Point) -> str:
    """Return a point in one line."""
    rows = [
        f"{name} {point.batch / point.seconds[name].median:.1f} FPS ({speed / point.peak:.0%} of the peak)"
        for name, speed in point.speeds.items()
    ]
    return f"{point.network}, {point.imgsz} px, batch {point.batch}: {', '.join(rows)}"


def draw(points: list[Point], file: Path) -> None:
    """Draw the speeds of each series as shares of the peak, over what grows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(SERIES), sharey=True)
    for axis, series in zip(axes, SERIES, strict=True):
        mine = [point for point in points if point.series == series]
        labels = [str(getattr(point, series)).removesuffix(".yaml") for point in mine]
        for name in mine[0].speeds if mine else ():
            axis.plot(labels, [100 * point.speeds[name] / point.peak for point in mine], marker="o", label=name)
        axis.axhline(100, color="tab:grey", linestyle="--", label=PEAK)
        axis.set(xlabel={"imgsz": "pixels", "batch": "images", "network": "network"}[series])
        axis.tick_params(axis="x", rotation=20 if series == "network" else 0)
    axes[0].set(ylabel="% of the machine's peak, float32", ylim=(0, 108))
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=120)
