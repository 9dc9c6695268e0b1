"""The output of a comparison of backends: table, JSON, plot, and which backend to choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from yolorep.bench.agreement import CLOSE, CONFIDENCE, DIFFERENT, SAME
from yolorep.bench.backend_rows import Comparison, Row
from yolorep.bench.measure import Settings
from yolorep.bench.record import as_json, describe, processor, replace_together

COLOURS = {SAME: "tab:blue", CLOSE: "tab:orange", DIFFERENT: "tab:red"}
# backend → the commands that run it; {w} weights, {s} size, {stem} weights without suffix
ULTRALYTICS = {
    "eager": ["yolorep predict model={w} imgsz={s} source=IMAGES"],
    "channels_last": ["in Python: model.to(memory_format=torch.channels_last)"],
    "bfloat16": ["in Python: model.bfloat16().to(memory_format=torch.channels_last)"],
    "half": ["yolorep predict model={w} imgsz={s} source=IMAGES half=True"],
    "cuda-graph": ["in Python: yolorep.bench.cuda_graphs.captured(lambda: model(images))"],
    "cuda-graph-half": ["in Python: model.half(), then yolorep.bench.cuda_graphs.captured(lambda: model(images))"],
    "compile": ["yolorep predict model={w} imgsz={s} source=IMAGES compile=True"],
    "onnxruntime": [
        "yolorep export model={w} imgsz={s} format=onnx",
        "yolorep predict model={stem}.onnx source=IMAGES",
    ],
    "openvino": [
        "yolorep export model={w} imgsz={s} format=openvino",
        "yolorep predict model={stem}_openvino_model source=IMAGES",
    ],
    "openvino-bf16": [
        "yolorep export model={w} imgsz={s} format=openvino",
        "yolorep predict model={stem}_openvino_model source=IMAGES    # bfloat16 is OpenVINO's default here",
    ],
    "openvino-int8": [
        "yolorep quantize {w} {stem}-int8_openvino_model --imgsz {s} --data DATA.yaml",
        "yolorep predict model={stem}-int8_openvino_model source=IMAGES",
    ],
    "ncnn": ["yolorep export model={w} imgsz={s} format=ncnn", "yolorep predict model={stem}_ncnn_model source=IMAGES"],
    "tensorrt": [
        "yolorep export model={w} imgsz={s} format=engine half=True device=0",
        "yolorep predict model={stem}.engine source=IMAGES",
    ],
}
DETECT = "yolorep yolov5 detect.py --imgsz {s} --source IMAGES --weights "
EXPORT = "yolorep yolov5 export.py --weights {w} --imgsz {s} --include "
YOLOV5 = ULTRALYTICS | {
    "eager": [DETECT + "{w}"],
    "half": [DETECT + "{w} --half"],
    "channels_last": ["in Python: yolorep.bench.measure.in_layout_(model, torch.channels_last)"],
    "bfloat16": ["in Python: yolorep.bench.measure.in_layout_(model.bfloat16(), torch.channels_last)"],
    "compile": ["in Python: torch.compile(model)"],
    "onnxruntime": [EXPORT + "onnx", DETECT + "{stem}.onnx"],
    "openvino": [EXPORT + "openvino", DETECT + "{stem}_openvino_model"],
    "openvino-bf16": [EXPORT + "openvino", DETECT + "{stem}_openvino_model    # bfloat16 is OpenVINO's default here"],
    "openvino-int8": [ULTRALYTICS["openvino-int8"][0], DETECT + "{stem}-int8_openvino_model"],
    "ncnn": ["in pnnx: torch.jit.trace the model, then pnnx model.pt inputshape=[1,3,{s},{s}]"],
    "tensorrt": [EXPORT + "engine --half --device 0", DETECT + "{stem}.engine"],
}


def table(found: Comparison, settings: Settings) -> Table:
    """Return the table: network time, images per second, speed-up over the reference, agreement, MiB."""
    view = Table(title=escape(title(found, settings)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("form", "backend"):
        view.add_column(column, no_wrap=True)
    for column in ("ms", "FPS", "speed-up"):
        view.add_column(column, justify="right", no_wrap=True)
    view.add_column(found.compared, overflow="fold")
    for column in ("memory\nMiB", "file\nMiB"):
        view.add_column(column, justify="right", no_wrap=True)
    for row in sorted(found.timed, key=found.seconds):
        view.add_row(*map(escape, _cells(found, row)))
    view.add_section()
    for step in found.steps.seconds if found.steps else ():
        view.add_row("", step, f"{found.steps.time(step).median * 1e3:.2f}")  # type: ignore[union-attr]
    return view


def title(found: Comparison, settings: Settings) -> str:
    """Return what was run, and where."""
    where = processor() if found.device == "cpu" else found.device
    count = found.timing.flags.get("threads")
    threads = f"{count} thread{'s' * (count != 1)}"
    run = f"{found.what}, batch {found.batch}, {found.size} px"
    return f"{run}: {where}, {threads}, {settings.rounds} interleaved rounds, checked on {found.images} images"


def _cells(found: Comparison, row: Row) -> list[str]:
    ratio = found.timing.ratio(found.reference, row.name)
    seconds = found.seconds(row)
    mib = [f"{value / 2**20:.0f}" if value is not None else "" for value in (row.memory, row.file)]
    speed = [f"{seconds * 1e3:.2f}", f"{found.batch / seconds:.1f}", f"{ratio.median:.2f}"]
    return [row.form, row.backend, *speed, str(row.agreement), *mib]


def notes(found: Comparison, weights: str | None, host: str) -> Iterator[str]:
    """Yield what was not timed and why, which backend to choose, and the command that runs it.

    weights: path of the checkpoint, None for a model of a YAML. host: 'ultralytics' or 'yolov5'.
    """
    reasons: dict[str, dict[str, None]] = {}
    for row in found.rows:
        if row.error:
            whole = all(other.error for other in found.rows if other.backend == row.backend)
            reasons.setdefault(row.error, {})[row.backend if whole else f"{row.form} {row.backend}"] = None
    for error, names in reasons.items():
        yield f"not timed: {', '.join(names)}: {error}"
    for row in found.timed:
        if row.agreement and row.agreement.verdict == DIFFERENT:
            differs = f"finds other {found.compared} than float32 PyTorch ({row.agreement})"
            yield f"{row.name} {differs}: do not deploy it unchecked"
    if any(row.backend == "openvino-int8" for row in found.timed) and found.calibration < 32:
        yield f"openvino-int8 was calibrated on {found.calibration} images only; --images FOLDER gives it more"
    if found.steps and found.compared != "boxes":
        hint = "" if found.own_images else "; --images FOLDER takes yours"
        yield f"no box has a confidence of {CONFIDENCE} on the {found.images} images, so outputs were compared{hint}"
    exact, close = found.fastest(SAME), found.fastest(SAME, CLOSE)
    choices = {f"fastest with the same {found.compared}": exact}
    if close is not exact:
        choices[f"faster, with slightly different {found.compared}"] = close
    for label, best in choices.items():
        if best is None:
            continue
        ratio = found.timing.ratio(found.reference, best.name).median
        yield f"{label}: {best.backend} ({ratio:.2f} times as fast as eager float32)"
        if weights is not None:
            yield from (f"    {command}" for command in commands(best.backend, weights, found.size, host))


def commands(backend: str, weights: str, size: int, host: str) -> list[str]:
    """Return the commands that export to a backend and run it."""
    values = {"w": weights, "s": size, "stem": weights.removesuffix(".pt")}
    return [line.format(**values) for line in (ULTRALYTICS if host == "ultralytics" else YOLOV5)[backend]]


def write(results: Sequence[Comparison], settings: Settings, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.json and `stem`.png, both or neither; replaces those of an earlier run and returns both paths.

    Raises:
        UsageError: they cannot be written.
    """
    record = describe("yolorep bench", settings.device, results[0].timing.flags, rounds=settings.rounds, autocast=None)
    record["results"] = [_record(found) for found in results]
    files = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    replace_together({files[0]: as_json(record), files[1]: lambda file: plot(results, settings, file)})
    return files


def _record(found: Comparison) -> dict[str, Any]:
    rows = []
    for row in found.rows:
        entry: dict[str, Any] = {**asdict(row), "verdict": row.agreement.verdict if row.agreement else None}
        if row.error is None:
            seconds = found.timing.seconds[row.name]
            ratio = asdict(found.timing.ratio(found.reference, row.name))
            entry |= {"ms": found.seconds(row) * 1e3, "fps": found.batch / found.seconds(row)}
            entry |= {"speed_up": ratio, "seconds": seconds}
        rows.append(entry)
    steps = found.steps.seconds if found.steps else {}
    stages = {step: {"ms": median(seconds) * 1e3, "seconds": seconds} for step, seconds in steps.items()}
    fastest = {verdict: found.fastest(*accepted) for verdict, accepted in CHOICES.items()}
    return {
        "what": found.what,
        "batch": found.batch,
        "size": found.size,
        "reference": found.reference,
        "checked_images": found.images,
        "calls_per_sample": found.timing.calls,
        "rows": rows,
        "stages": stages,
        "fastest": {verdict: row.name if row else None for verdict, row in fastest.items()},
    }


CHOICES = {"same": (SAME,), "close": (SAME, CLOSE)}


def plot(results: Sequence[Comparison], settings: Settings, file: Path) -> None:
    """Draw one chart per comparison: images per second of every row, coloured by the agreement of its boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [0.3 * len(found.timed) + 1.0 for found in results]
    figure = Figure(figsize=(8, sum(heights) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, found in zip(axes, results, strict=True):
        rows = sorted(found.timed, key=found.seconds, reverse=True)
        fps = [found.batch / found.seconds(row) for row in rows]
        colours = [COLOURS[row.agreement.verdict] if row.agreement else "tab:grey" for row in rows]
        bars = axis.barh([f"{row.form}, {row.backend}" for row in rows], fps, color=colours)
        ratios = [found.timing.ratio(found.reference, row.name).median for row in rows]
        axis.bar_label(
            bars,
            [f"{value:.1f} ({ratio:.2f}x)" for value, ratio in zip(fps, ratios, strict=True)],
            padding=3,
            fontsize=8,
        )
        axis.set_title(f"{found.what}, batch {found.batch}, {found.size} px", fontsize=9)
        axis.set_xlabel(f"images per second (times {found.reference})", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    shown = [Patch(color=colour, label=f"{verdict} {results[0].compared}") for verdict, colour in COLOURS.items()]
    axes[0].legend(handles=shown, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=130, bbox_inches="tight")
