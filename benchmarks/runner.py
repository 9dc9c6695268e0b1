"""The runner: a table of benchmarks, the options that all of them have, and the record that each of them writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from yolorep.bench.measure import best_device
from yolorep.bench.record import Content, as_json, check_folder, describe, replace_together
from yolorep.errors import UsageError, YolorepError
from yolorep.telemetry import send_no_telemetry

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Benchmark:
    """One row of the table.

    module: the module of this package that has `add_options(parser)`, `run(options, recorder)` and a docstring, which
    `--help` prints. question: what it measures, in one line. defaults: overrides of the module's option defaults.
    """

    module: str
    question: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


OTHER_CLASSIFIERS = ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:resnet50"]
TABLE: dict[str, Benchmark] = {
    "fps": Benchmark(
        "inference",
        "yolov5s-rep unfused and deployed against stock YOLOv5s",
        {"what": ["yolov5s-rep.yaml"], "batch": [1, 8], "imgsz": [320, 640]},
    ),
    "blocks": Benchmark(
        "inference",
        "one RepVGG block unfused and deployed against YOLO's convolution",
        {"what": ["repvgg"], "batch": [1, 8, 32]},
    ),
    "classifiers": Benchmark(
        "inference",
        "RepVGG-A0 against torchvision's classifiers",
        {"what": ["repvgg-a0.yaml"], "beside": OTHER_CLASSIFIERS, "batch": [1, 8], "imgsz": [224]},
    ),
    "training": Benchmark("training", "time and memory of a block's training step against stock"),
    "steps": Benchmark("steps", "time and memory of a whole model's training step per block against stock"),
    "eligibility": Benchmark("eligibility", "cost of branches beside each kind of convolution"),
    "families": Benchmark("families", "every model family: expand, deploy, fuse and export"),
    "growth": Benchmark("growth", "speed as image, batch and network grow, below the machine's peak"),
    "by-hand": Benchmark("by_hand", "every backend of `yolorep bench` beside the same runtime used by hand"),
    "equal-latency": Benchmark("equal_latency", "a network scaled until it is, deployed, as fast as a stock one"),
    "accuracy": Benchmark("accuracy", "mAP of stock and rep by `yolorep compare`: in pairs, with intervals"),
    "starts": Benchmark("starts", "fine-tuning from every start that keeps the function, in pairs with stock"),
    "quantize": Benchmark("quantize", "fine-tuning with 8-bit rounding against the same without, and none"),
    "int8": Benchmark("int8", "what 8 bits cost each block, by scheme and cure"),
    "startup": Benchmark("startup", "seconds until a command or an import is there, beside the host's own"),
    "resume": Benchmark("resume", "a distributed training killed and resumed against one left alone"),
    "gpu": Benchmark("gpu", "everything that needs a GPU: proofs first, then timings, in under 20 minutes"),
}


@dataclass(frozen=True)
class Recorder:
    """Writes the record of one benchmark to `stem`.json, and the files that belong to it."""

    name: str
    stem: Path
    device: str

    def write(
        self, results: Mapping[str, Any], *, flags: Mapping[str, Any] | None = None, also: Mapping[str, Content] = {}
    ) -> list[Path]:
        """Replace the record, and `also` (suffix such as '.png' → content) together with it; returns their paths.

        results: entries after the description of script, machine and versions. flags: `torch_flags()` while measuring.
        """
        record = {**describe(f"benchmarks {self.name}", self.device, flags), **results}
        files = {self.path(".json"): as_json(record), **{self.path(suffix): made for suffix, made in also.items()}}
        replace_together(files)
        return list(files)

    def path(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line names; exit with 1 and one sentence for wrong input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0 if given else 2)
    send_no_telemetry()  # some call OpenVINO and NNCF by hand
    try:
        run(given[0], given[1:])
    except YolorepError as error:
        sys.exit(f"python -m benchmarks {given[0]}: {error}")


def overview() -> str:
    """Return the usage and one line per benchmark."""
    rows = [f"  {name:13} {benchmark.question}" for name, benchmark in TABLE.items()]
    return "\n".join(["usage: python -m benchmarks NAME [options]    (NAME --help lists the options)", "", *rows])


def run(name: str, arguments: Sequence[str]) -> None:
    """Run one benchmark of the table.

    Raises:
        UsageError: the table has no benchmark of that name, or an option has a value that is not accepted.
        SystemExit: argparse refuses the options, or the benchmark found a fault.
    """
    if name not in TABLE:
        raise UsageError(f"there is no benchmark {name!r}; accepted: {', '.join(TABLE)}")
    benchmark = TABLE[name]
    module = import_module(f"benchmarks.{benchmark.module}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default=best_device(), help="cpu, cuda or cuda:N; default: a GPU if there is one")
    parser.add_argument("--threads", type=int, help="CPU threads; default: the choice of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", default=name, help="name of the record's files, without suffix")
    add: Callable[[argparse.ArgumentParser], None] = module.add_options
    add(parser)  # after the common options: a benchmark may set other defaults for them
    parser.set_defaults(**benchmark.defaults)
    options = parser.parse_args(arguments)
    check_folder(options.out)
    module.run(options, Recorder(name, options.out / options.name, options.device))
