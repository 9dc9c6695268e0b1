"""Every model family and task of both hosts: expanded, deployed, fused and exported.

    python benchmarks/families.py
    python benchmarks/families.py --repo ../yolov5
    python benchmarks/families.py yolo11n* --formats torchscript onnx openvino

Writes benchmarks/results/families.json, in which rows that are not measured again stay as they are, and its tables as
families.md. --repo: a YOLOv5 tree, whose models are then measured instead of ultralytics'. --formats: export the first
model of each family and task, instead, and run what comes out; each format's converter and runtime must be here.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from exports import of_tree, of_ultralytics, parity
from roundtrip import roundtrip
from tables import tables
from zoo import TREE, Model, models, yolo

from yolorep.atomic_files import written_whole
from yolorep.bench.measure import Settings
from yolorep.bench.report import machine
from yolorep.errors import YolorepError
from yolorep.hosts.offline import go_offline
from yolorep.hosts.ultralytics.build import quiet
from yolorep.hosts.yolov5.compat import tree_modules

FILE = Path(__file__).parent / "results" / "families.json"


def main() -> None:
    """Measure what the command line asks for, one model after the other; each is written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="patterns of model names, by default all")
    parser.add_argument("--repo", type=Path, help="a YOLOv5 tree")
    parser.add_argument("--formats", nargs="+", default=[], help="ultralytics' names of export formats")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    go_offline()
    try:
        if options.repo is not None:
            tree_modules(options.repo)
        for model in models():
            asked = any(fnmatchcase(model.name, pattern) for pattern in options.names)
            if asked and (model.family == TREE) == (options.repo is not None):
                for row in rows(model, options.formats, options.repo):
                    record(options.out, model, row)
    except YolorepError as error:
        sys.exit(f"{parser.prog}: {error}")
    text = tables(read(options.out)["models"])
    with written_whole(options.out.with_suffix(".md"), "w") as file:
        file.write(f"# Every model there and back, by `benchmarks/families.py`\n\n{text}\n")
    print(text)


def rows(model: Model, formats: list[str], repo: Path | None) -> Any:
    """What is measured of one model: its exports to `formats`, if there are any, or else its way there and back."""
    if formats:
        return ({"exports": {form: apart(model, form, repo)}} for form in formats if model.exported)
    with quiet():
        return [asdict(roundtrip(model.built(), fuse_in=torch.float32 if model.family == TREE else torch.float64))]


def apart(model: Model, form: str, repo: Path | None) -> float | str:
    """The parity of one export, in a process of its own: a converter may crash its process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(exported, model, form, repo).result()
        except BrokenProcessPool:
            return "the converter or its runtime crashed the process"


def exported(model: Model, form: str, repo: Path | None) -> float | str:
    """The parity of one export, in this process. repo: the YOLOv5 tree that the model is of."""
    go_offline()
    if repo is not None:
        tree_modules(repo)
        return parity(model.built(), form, of_tree)
    host = yolo(model.yaml)
    return parity(host.model, form, of_ultralytics(host))


def record(file: Path, model: Model, row: dict[str, Any]) -> None:
    """Put what was measured in the place of what the file had of it."""
    before, order = read(file), [m.name for m in models()]
    old = before["models"].get(model.name, {})
    exports = {**old.get("exports", {}), **row.get("exports", {})}
    new = {"family": model.family, "task": model.task, **old, **row, "exports": exports}
    kept = {**before["models"], model.name: new}
    content = {
        "date": date.today().isoformat(),
        "machine": machine(Settings()),
        "versions": {**before.get("versions", {}), **versions()},
        "models": {name: kept[name] for name in sorted(kept, key=order.index)},
    }
    with written_whole(file, "w") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
    print(model.name, row, flush=True)


def read(file: Path) -> dict[str, Any]:
    """What has been recorded."""
    return json.loads(file.read_text()) if file.exists() else {"models": {}}


def versions() -> dict[str, str]:
    """The versions of what is installed here of torch, the hosts, and the runtimes of exported files."""
    hosts = ("yolorep", "torch", "ultralytics")
    runtimes = ("onnxruntime", "openvino", "ncnn", "MNN", "paddlepaddle", "ai-edge-litert", "executorch", "coremltools")
    found = {}
    for name in (*hosts, *runtimes):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    main()
