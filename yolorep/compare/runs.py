"""One training of a comparison, in a separate process: `python -m yolorep.compare.runs FOLDER`.

The folder holds `request.json`. The process writes `start.pt`, trains in `train/`, adds a line to `epochs.jsonl` for
every epoch, and writes `result.json` and `images.npz` at the end. Started again after a kill, it goes on where the
host's last checkpoint is.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import nn

from yolorep.bench.record import write_json
from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.compare.starts import classes_of, learning_rate, make_start

NOTES = "epochs.jsonl"
LAST = 3  # epochs that a score is the mean of
# task → the figures that it is judged by, in the order mAP50, mAP50-95, by ultralytics' names
FIGURES = {
    "detect": ("metrics/mAP50(B)", "metrics/mAP50-95(B)"),
    "obb": ("metrics/mAP50(B)", "metrics/mAP50-95(B)"),
    "segment": ("metrics/mAP50(M)", "metrics/mAP50-95(M)"),
    "pose": ("metrics/mAP50(P)", "metrics/mAP50-95(P)"),
}
HITS = {"segment": "tp_m", "pose": "tp_p"}  # which of the host's arrays tells the true positives


def main() -> None:
    """Carry out the request in the folder that the command line names; end when the parent process ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1]).resolve()  # ultralytics puts a relative one elsewhere
    train(folder, json.loads((folder / "request.json").read_text(encoding="utf-8")))


def train(folder: Path, request: dict[str, Any]) -> None:
    """Train, or go on with a training, and write the result.

    request: model, data, rep, seed, epochs, factor and train, as in a `compare.plan.Run` and its plan.
    """
    from yolorep.hosts import data_downloads
    from yolorep.hosts.offline import guard_hosts

    guard_hosts()
    data_downloads.allow()
    last = folder / "train" / "weights" / "last.pt"
    done = epochs_of(folder)
    if len(done) < request["epochs"]:
        yolo, options = _resumed(last) if last.is_file() else _fresh(folder, request)
        clock = _Clock(request["cpu_time"])
        yolo.add_callback("on_train_epoch_start", clock)
        yolo.add_callback("on_fit_epoch_end", _noting(folder, clock))
        yolo.train(**options)
    task, figures = _validate(folder, last, request)
    epochs = epochs_of(folder)
    result = {
        "task": task,
        "mAP50": mean(epoch["mAP50"] for epoch in epochs[-LAST:]),
        "mAP50-95": mean(epoch["mAP50-95"] for epoch in epochs[-LAST:]),
        "best": max(epoch["mAP50-95"] for epoch in epochs),
        "final": figures,
        "seconds_per_epoch": median(epoch["seconds"] for epoch in epochs if "seconds" in epoch),
    }
    write_json(folder / "result.json", result)


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Return the finished epochs in order, each with its loss and figures, and the seconds and gains that were noted.

    The figures are those of the host's results.csv, which it writes before a checkpoint: a kill can take a line of
    `epochs.jsonl` only. After one, an epoch may stand in either file twice, and the later line counts.
    """
    table, notes = folder / "train" / "results.csv", folder / NOTES
    if not table.is_file():
        return []
    noted = {note["epoch"]: note for note in map(_parsed, notes.read_text(encoding="utf-8").splitlines()) if note}
    found = {}
    with table.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            values = {name.strip(): float(value) for name, value in row.items()}
            epoch = int(values["epoch"])  # from 1
            names = next(pair for pair in FIGURES.values() if pair[0] in values)
            losses = [value for name, value in values.items() if name.startswith("train/")]
            figures = {"mAP50": values[names[0]], "mAP50-95": values[names[1]]}
            found[epoch] = {**noted.get(epoch, {}), "epoch": epoch, "loss": sum(losses), **figures}
    return [found[epoch] for epoch in sorted(found)]


def _parsed(line: str) -> dict[str, Any]:
    """Read a line of notes; an empty mapping for one that a kill cut off."""
    try:
        return json.loads(line)  # type: ignore[no-any-return]
    except ValueError:
        return {}


def mean_gains(model: nn.Module) -> dict[str, float]:
    """Return the mean |gain| of each kind of path over all rep blocks, the dense one included."""
    found: dict[str, list[float]] = {}
    for block in model.modules():
        if isinstance(block, Conv_C3) and not block.deployed:
            for name, gain in block.gains().items():
                if gain is not None:
                    found.setdefault(name, []).append(float(gain.detach().abs().mean()))
    return {name: mean(values) for name, values in found.items()}


def _fresh(folder: Path, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from ultralytics import YOLO

    for old in (folder / "train", folder / NOTES):  # of a run that was killed before its first checkpoint
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    start = folder / "start.pt"
    make_start(request["model"], request["data"], request["rep"], request["seed"], start, request["train"]["imgsz"])
    options = dict(request["train"])
    lr = options.pop("lr0", None) or learning_rate(classes_of(request["data"]))
    fixed = {"project": str(folder), "name": "train", "exist_ok": True, "patience": request["epochs"]}
    options |= {**fixed, "data": request["data"], "epochs": request["epochs"], "seed": request["seed"]}
    return YOLO(str(start)), {**options, "lr0": lr * request["factor"]}


def _resumed(last: Path) -> tuple[Any, dict[str, Any]]:
    from ultralytics import YOLO

    return YOLO(str(last)), {"resume": True}


class _Clock:
    """Seconds since an epoch began. cpu: of the process, which other programs hardly change; else of the clock."""

    def __init__(self, cpu: bool) -> None:
        self._now: Callable[[], float] = time.process_time if cpu else time.perf_counter
        self._began = self._now()

    def __call__(self, _: Any) -> None:
        self._began = self._now()

    def seconds(self) -> float:
        return self._now() - self._began


def _noting(folder: Path, clock: _Clock) -> Callable[[Any], None]:
    """Return a callback that notes the seconds of an epoch and the mean gains of the branches."""

    def note(trainer: Any) -> None:
        line = {"epoch": trainer.epoch + 1, "seconds": clock.seconds(), "gains": mean_gains(trainer.ema.ema)}
        with (folder / NOTES).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    return note


def _validate(folder: Path, last: Path, request: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Validate the folded last weights, and store which predictions of each image are correct.

    One image at a time: the host drops the rest of a batch after a time limit, which a busy machine reaches.
    """
    from ultralytics import YOLO

    yolo: Any = YOLO(str(last))
    kept: dict[str, list[Any]] = {}
    yolo.add_callback("on_val_batch_end", lambda validator: kept.update(_lists_of(validator)))
    imgsz = request["train"].get("imgsz", 640)
    options = {"imgsz": imgsz, "batch": 1, "workers": 0, "plots": False, "verbose": False}
    found = yolo.val(data=request["data"], device=request["train"].get("device", "cpu"), project=str(folder), **options)
    shutil.rmtree(folder / "val", ignore_errors=True)
    hits = HITS.get(yolo.task, "tp")
    np.savez_compressed(folder / "images.npz", **_flat(kept, hits))  # type: ignore[arg-type]
    names = FIGURES[yolo.task]
    return yolo.task, {"mAP50": float(found.results_dict[names[0]]), "mAP50-95": float(found.results_dict[names[1]])}


def _lists_of(validator: Any) -> dict[str, list[Any]]:
    """Copy the host's lists, which have an entry for every image; it empties them when validation ends."""
    stats = getattr(validator, "stats", None) or validator.metrics.stats
    return {name: list(entries) for name, entries in stats.items()}


def _flat(kept: dict[str, list[Any]], hits: str) -> dict[str, np.ndarray]:
    """Return arrays over all predictions and all targets, each with the index of its image."""
    arrays = {name: [np.asarray(torch.as_tensor(entry).cpu()) for entry in entries] for name, entries in kept.items()}
    flat = {
        "hits": np.concatenate(arrays[hits]),
        "confidence": np.concatenate(arrays["conf"]),
        "predicted": np.concatenate(arrays["pred_cls"]),
        "target": np.concatenate(arrays["target_cls"]),
    }
    for name, source in (("prediction_image", "conf"), ("target_image", "target_cls")):
        flat[name] = np.repeat(np.arange(len(arrays[source])), [len(entry) for entry in arrays[source]])
    return {**flat, "images": np.array(len(arrays["conf"]))}


def _end_with_parent() -> None:
    """Wait for the end of the standard input, which the parent holds open, and end this process."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
