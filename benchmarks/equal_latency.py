"""Scale a network until it is, deployed, as fast as a stock network on this CPU.

    python -m benchmarks equal-latency yolov5n-efficientrep.yaml --stock yolov5n.yaml
    python -m benchmarks equal-latency yolov5n-csprepresnet.yaml --only width --name equal-latency-csprepresnet

Each trial multiplies `width_multiple` and `depth_multiple` by one factor, builds and deploys the network, exports both
networks to ONNX, and times them in turns in ONNX Runtime and OpenVINO, float32, one image. The latency of a trial is
the geometric mean, over the backends, of the median ratio to stock. The search ends within the tolerance, or where no
network lies between the last two. The record holds every trial, and NAME.yaml beside it is the best one, which
`yolorep compare network=NAME.yaml` trains. Weights are random: nothing here is about accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.runner import Recorder
from yolorep.bench.backends.job import Job, Predictions
from yolorep.bench.backends.table import BACKENDS
from yolorep.bench.record import torch_flags
from yolorep.bench.timing import Spread, Timing, interleave
from yolorep.deployment import deploy
from yolorep.errors import UsageError
from yolorep.hosts.ultralytics.build import build, quiet

STOCK, NETWORK = "stock", "network"
RUNTIMES = ("onnxruntime", "openvino")
INT8 = "openvino-int8"
AXES = ("width", "depth")
SMALLEST, LARGEST = 1 / 8, 8.0  # factors
GROWTH = {("width", "depth"): 3, ("width",): 2, ("depth",): 1}  # FLOPs grow by about this power of the factor


@dataclass(frozen=True)
class Trial:
    """A scaled network beside stock.

    width, depth: its multiples. parameters: deployed. ms: backend → milliseconds of stock and of the network. ratios:
    backend → network / stock, round by round. ratio: geometric mean of their medians.
    """

    factor: float
    width: float
    depth: float
    parameters: int
    ms: dict[str, dict[str, Spread]]
    ratios: dict[str, Spread]
    ratio: float

    @property
    def distance(self) -> float:
        """Return how far the ratio is from 1, a half as far as a double."""
        return abs(log(self.ratio))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("network", nargs="?", default="yolov5n-efficientrep.yaml")
    parser.add_argument("--stock", default="yolov5n.yaml")
    parser.add_argument("--only", choices=AXES, help="default: both, by one factor")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--int8", action="store_true", help="time both in 8 bits too, once the search has ended")
    parser.add_argument("--tolerance", type=float, default=0.03, help="accepted distance of the ratio from 1")
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Search, and write the record after each trial."""
    if options.device != "cpu":
        raise UsageError(f"equal-latency times ONNX Runtime and OpenVINO on the CPU, not on {options.device}")
    if options.trials < 1:
        raise UsageError(f"--trials is {options.trials}; accepted: 1 or more")
    needed = (*RUNTIMES, INT8) if options.int8 else RUNTIMES
    for missing in (BACKENDS[backend].missing(torch.device("cpu")) for backend in needed):
        if missing is not None:
            raise UsageError(missing)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    axes = AXES if options.only is None else (options.only,)
    names = ("network", "stock", "only", "imgsz", "rounds", "tolerance")
    results: dict[str, Any] = {name: getattr(options, name) for name in names}
    trials: list[Trial] = []
    for trial in search(options, axes):
        trials.append(trial)
        best = min(trials, key=lambda one: one.distance)
        results |= {
            "found": within(best, options.tolerance),
            "best": asdict(best),
            "results": list(map(asdict, trials)),
        }
        found = yaml.safe_dump(multiplied(options.network, axes, best.factor), sort_keys=False)
        recorder.write(results, flags=torch_flags(), also={".yaml": found})
        print(told(trial), flush=True)
    print(f"{'equal' if results['found'] else 'nearest'}: {told(best)}")
    if options.int8:
        network = deployed(multiplied(options.network, axes, best.factor))
        timing = timed({STOCK: deployed(options.stock), NETWORK: network}, options.imgsz, options.rounds, (INT8,))
        ratio = timing.ratio(f"{NETWORK}, {INT8}", f"{STOCK}, {INT8}")
        ms = {form: asdict(spread) for form, spread in _milliseconds(timing, INT8).items()}
        recorder.write(
            {**results, "int8": {"ms": ms, "ratio": asdict(ratio)}}, flags=torch_flags(), also={".yaml": found}
        )
        print(f"8 bits in OpenVINO: {ratio.median:.3f} x")


def search(options: argparse.Namespace, axes: tuple[str, ...]) -> Iterator[Trial]:
    """Measure one factor after the other, until one is within the tolerance or no network lies between the last two."""
    low, high, factor, seen = SMALLEST, LARGEST, 1.0, set[int]()
    for _ in range(options.trials):
        trial = measured(options, axes, factor)
        yield trial
        if within(trial, options.tolerance) or trial.parameters in seen:
            return
        seen.add(trial.parameters)
        low, high = (low, factor) if trial.ratio > 1 else (factor, high)
        factor = following(trial, low, high, GROWTH[axes])


def within(trial: Trial, tolerance: float) -> bool:
    """Return whether a network is as fast as stock."""
    return trial.distance <= log(1 + tolerance)


def following(trial: Trial, low: float, high: float, power: int) -> float:
    """Return the factor to try next: the predicted one if it lies between the bounds, else their geometric mean.

    Example:
        >>> made = Trial(1.0, 0.25, 0.33, 1, {}, {}, 8.0)
        >>> following(made, 0.125, 1.0, 3)
        0.5
    """
    predicted = trial.factor * trial.ratio ** (-1 / power)
    return predicted if low < predicted < high else (low * high) ** 0.5


def measured(options: argparse.Namespace, axes: tuple[str, ...], factor: float) -> Trial:
    """Return the trial of one factor."""
    content = multiplied(options.network, axes, factor)
    network = deployed(content)
    timing = timed({STOCK: deployed(options.stock), NETWORK: network}, options.imgsz, options.rounds)
    ms = {backend: _milliseconds(timing, backend) for backend in RUNTIMES}
    ratios = {b: timing.ratio(f"{NETWORK}, {b}", f"{STOCK}, {b}") for b in RUNTIMES}
    mean = prod(spread.median for spread in ratios.values()) ** (1 / len(ratios))
    parameters = sum(p.numel() for p in network.parameters())
    return Trial(factor, content["width_multiple"], content["depth_multiple"], parameters, ms, ratios, mean)


def multiplied(network: str, axes: tuple[str, ...], factor: float) -> dict[str, Any]:
    """Return the dictionary of a model YAML with the multiples of `axes` times a factor."""
    return scaled(network, {axis: factor if axis in axes else 1.0 for axis in AXES})


def scaled(network: str, factors: Mapping[str, float]) -> dict[str, Any]:
    """Return the dictionary of a model YAML with its multiples times the factors; a scale of it is written out."""
    from ultralytics.nn.tasks import yaml_model_load

    content = yaml_model_load(network)
    content.pop("yaml_file", None)  # the host's note of where it is from
    scales = content.pop("scales", None)
    if scales:
        depth, width, _ = scales[content.pop("scale") or next(iter(scales))]
        content.update(depth_multiple=depth, width_multiple=width)
    for axis in AXES:
        content[f"{axis}_multiple"] = round(content.get(f"{axis}_multiple", 1.0) * factors[axis], 4)
    return content


def deployed(what: str | dict[str, Any]) -> nn.Module:
    """Return a network, by its YAML or its dictionary, as it is exported."""
    from ultralytics.nn.tasks import DetectionModel

    with quiet():
        model = build(what) if isinstance(what, str) else DetectionModel(what, verbose=False)
        return deploy(model.float().eval()).fuse(verbose=False).requires_grad_(False)


def timed(models: Mapping[str, nn.Module], size: int, rounds: int, backends: Sequence[str] = RUNTIMES) -> Timing:
    """Time every model in every backend, in turns."""
    images, device, calls = torch.rand(1, 3, size, size), torch.device("cpu"), {}
    with TemporaryDirectory(prefix="yolorep-bench-") as root, torch.inference_mode(), quiet():
        for name, model in models.items():
            folder = Path(root) / name
            folder.mkdir()
            job = Job(Predictions(model, first=True), images, images, device, torch.get_num_threads(), folder)
            for backend in backends:
                calls[f"{name}, {backend}"] = BACKENDS[backend].start(job).call
        return interleave(calls, rounds, device)


def told(trial: Trial) -> str:
    """Return a trial in one line."""
    times = ", ".join(f"{b} {ms[NETWORK].median:.1f} ms (stock {ms[STOCK].median:.1f})" for b, ms in trial.ms.items())
    return f"width {trial.width:g}, depth {trial.depth:g}, {trial.parameters / 1e6:.2f} M: {trial.ratio:.3f} x, {times}"


def _milliseconds(timing: Timing, backend: str) -> dict[str, Spread]:
    seconds = {form: timing.time(f"{form}, {backend}") for form in (STOCK, NETWORK)}
    return {form: Spread(*(1e3 * value for value in asdict(spread).values())) for form, spread in seconds.items()}
