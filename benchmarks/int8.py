"""What 8 bits cost each block: every scheme and cure of `yolorep quantize` on the models of comparisons.

    yolorep compare model=yolov5n.yaml data=bccd.yaml rep=repvgg rep=qarepvgg out=runs/bccd ...
    python -m benchmarks int8 runs/bccd runs/deeppcb

Quantizes the last checkpoint of every arm and seed of `yolorep compare` with all schemes, and, where the best of them
still loses something, with the worst layers in float too. Loss: mAP50-95 of float32 minus that of 8 bits, in points.
The default is what `yolorep quantize` writes without options: the fastest of its default schemes that loses at most
0.5 points. A checkpoint that is in --work already is not quantized again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from benchmarks.runner import Recorder
from yolorep.bench.record import read_json, write_json
from yolorep.commands.quantize import Request, quantize_file
from yolorep.compare.plan import Arm
from yolorep.errors import UsageError
from yolorep.quantization.report import FLOAT32, Candidate, QuantizationReport
from yolorep.quantization.schemes import DEFAULTS, SCHEMES

IN_FLOAT = "worst layers in float"
TOLERATED = 0.5  # points, the command's default


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("comparisons", nargs="+", type=Path, help="folders of yolorep compare")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--images", type=int, default=100, help="for the calibration of ranges")
    parser.add_argument("--work", type=Path, default=Path("runs/int8"), help="folder of the quantized files")
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Quantize what is missing, and write the record and its table after each checkpoint.

    Raises:
        UsageError: a folder is no comparison, or it has no finished run.
    """
    results: list[dict[str, Any]] = []
    for folder in options.comparisons:
        for arm, seed, checkpoint, plan in checkpoints_of(folder):
            work = options.work / folder.name
            report = quantized(checkpoint, work / f"{arm.slug}-{seed}", plan, options)
            results.append({"data": folder.name, "arm": arm.name, "seed": seed, **report, **default_of(report)})
            settings = {"schemes": options.schemes, "images": options.images, "tolerated_points": TOLERATED}
            table = "\n".join(tables(results)) + "\n"
            recorder.write({**settings, "results": results}, also={".md": table})
    print(table)


def checkpoints_of(folder: Path) -> Iterator[tuple[Arm, int, Path, Mapping[str, Any]]]:
    """Yield arm, seed, last checkpoint and plan of each finished run at equal epochs.

    Raises:
        UsageError: there is none.
    """
    file = folder / "plan.json"
    if not file.is_file():
        raise UsageError(f"{folder} has no plan.json; accepted: a folder of yolorep compare")
    plan, found = read_json(file), 0
    for arm in (Arm(**entry) for entry in plan["arms"]):
        for seed in range(plan["seeds"]):
            for result in sorted(folder.glob(f"{arm.slug}-seed{seed}-lr*-{plan['epochs']}/result.json")):
                found += 1
                yield arm, seed, result.parent / "train" / "weights" / "last.pt", plan
    if not found:
        raise UsageError(f"{folder} has no finished run; repeat its `yolorep compare`")


def quantized(checkpoint: Path, work: Path, plan: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of `yolorep quantize` on a checkpoint; kept beside the file that it writes."""
    kept = work / "report.json"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        out = work / "int8.onnx"
        request = Request(
            checkpoint,
            out,
            Path(plan["data"]),
            plan["train"]["imgsz"],
            tuple(options.schemes),
            options.images,
            max_drop=0,  # so that layers are kept in float wherever that could help
            overwrite=True,
        )
        quantize_file(request, Console())
        write_json(kept, read_json(out.with_name(f"{out.name}.json")))
    report: dict[str, Any] = read_json(kept)
    return report


def default_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return which candidate the command would write by default, and its loss in points."""
    rows = [row for row in report["candidates"] if row["scheme"] in (FLOAT32, *DEFAULTS["onnx"]) and not row["floats"]]
    seconds = {row["label"]: row["seconds"] for row in rows}
    candidates = [Candidate(row["scheme"], row["figures"], row["bytes"]) for row in rows]
    offered = QuantizationReport(report["figure"], TOLERATED, candidates, seconds)
    return {"default": offered.chosen.label, "default_loss": offered.drop(offered.chosen)}


def tables(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table for each data set: a row for each arm, a column for each scheme; means over seeds."""
    for data in dict.fromkeys(row["data"] for row in results):
        mine = [row for row in results if row["data"] == data]
        arms = list(dict.fromkeys(row["arm"] for row in mine))
        schemes = list(dict.fromkeys(c["scheme"] for row in mine for c in row["candidates"] if c["scheme"] != FLOAT32))
        yield f"{data}: loss of mAP50-95 in points"
        yield ""
        yield f"| block | float32 | {' | '.join(schemes)} | {IN_FLOAT} | default |"
        yield "|---" * (len(schemes) + 4) + "|"
        for arm in arms:
            runs = [row for row in mine if row["arm"] == arm]
            float32 = mean(row["candidates"][0]["figures"][row["figure"]] for row in runs)
            losses = [" · ".join(_losses(row, scheme) for row in runs) for scheme in schemes]
            best = " · ".join(_best_in_float(row) for row in runs)
            default = " · ".join(f"{row['default_loss']:+.2f} ({row['default']})" for row in runs)
            yield f"| `{arm}` | {100 * float32:.2f} | {' | '.join(losses)} | {best} | {default} |"
        yield ""


def _losses(row: Mapping[str, Any], scheme: str) -> str:
    found = [c["loss_points"] for c in row["candidates"] if c["scheme"] == scheme and not c["floats"]]
    return f"{found[0]:+.2f}" if found else ""


def _best_in_float(row: Mapping[str, Any]) -> str:
    found = [c for c in row["candidates"] if c["floats"]]
    if not found:
        return "not tried"
    best = min(found, key=lambda c: float(c["loss_points"]))
    return f"{best['loss_points']:+.2f} ({best['label']})"
