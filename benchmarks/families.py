"""Every model family and task of both hosts: expand, deploy, fuse and export.

    python -m benchmarks families
    python -m benchmarks families --repo ../yolov5
    python -m benchmarks families yolo11n* --formats torchscript onnx openvino

Writes results/NAME.json, in which models that are not measured again keep their rows, and its tables as NAME.md.
--repo: a YOLOv5 tree, whose models are measured instead of ultralytics' models. --formats: instead of the round trip,
export the first model of each family and task and run the file; each format needs its converter and its runtime.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.exports import of_tree, of_ultralytics, parity
from benchmarks.families_tables import tables
from benchmarks.roundtrip import roundtrip
from benchmarks.runner import Recorder
from benchmarks.zoo import TREE, Model, models, yolo
from yolorep.bench.record import versions
from yolorep.hosts.offline import go_offline
from yolorep.hosts.ultralytics.build import quiet
from yolorep.hosts.yolov5.compat import tree_modules

RUNTIMES = ("onnxruntime", "openvino", "ncnn", "MNN", "paddlepaddle", "ai-edge-litert", "executorch", "coremltools")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("names", nargs="*", default=["*"], help="patterns of model names; default: all")
    parser.add_argument("--repo", type=Path, help="a YOLOv5 tree")
    parser.add_argument("--formats", nargs="+", default=[], help="ultralytics' names of export formats")
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Measure one model after the other; the record is written after each."""
    go_offline()
    if options.repo is not None:
        tree_modules(options.repo)
    for model in models():
        asked = any(fnmatchcase(model.name, pattern) for pattern in options.names)
        if asked and (model.family == TREE) == (options.repo is not None):
            for row in rows(model, options.formats, options.repo):
                record(recorder, model, row)
    print(tables(read(recorder.path(".json"))["models"]))


def rows(model: Model, formats: list[str], repo: Path | None) -> Any:
    """Return the measured values of one model: its exports if `formats` names any, else its round trip."""
    if formats:
        return ({"exports": {form: apart(model, form, repo)}} for form in formats if model.exported)
    with quiet():
        return [asdict(roundtrip(model.built(), fuse_in=torch.float32 if model.family == TREE else torch.float64))]


def apart(model: Model, form: str, repo: Path | None) -> float | str:
    """Return the parity of one export, measured in its own process because converters may crash."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(exported, model, form, repo).result()
        except BrokenProcessPool:
            return "the converter or its runtime crashed the process"


def exported(model: Model, form: str, repo: Path | None) -> float | str:
    """Return the parity of one export, measured in this process. repo: the YOLOv5 tree of the model."""
    go_offline()
    if repo is not None:
        tree_modules(repo)
        return parity(model.built(), form, of_tree)
    host = yolo(model.yaml)
    return parity(host.model, form, of_ultralytics(host))


def record(recorder: Recorder, model: Model, row: dict[str, Any]) -> None:
    """Replace the recorded values of a model by the measured ones, and write the record and its tables."""
    before, order = read(recorder.path(".json")), [m.name for m in models()]
    old = before["models"].get(model.name, {})
    exports = {**old.get("exports", {}), **row.get("exports", {})}
    new = {"family": model.family, "task": model.task, **old, **row, "exports": exports}
    kept = {**before["models"], model.name: new}
    found = {name: kept[name] for name in sorted(kept, key=order.index)}
    installed = {name: value for name, value in versions(RUNTIMES).items() if value}
    text = f"# Every model there and back, by `python -m benchmarks families`\n\n{tables(found)}\n"
    content = {"versions": {**before.get("versions", {}), **installed}, "models": found}
    recorder.write(content, also={".md": text})
    print(model.name, row, flush=True)


def read(file: Path) -> dict[str, Any]:
    """Return the recorded content, or a record without models."""
    return json.loads(file.read_text()) if file.exists() else {"models": {}}
