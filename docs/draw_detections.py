"""Draws what a model finds before and after it is deployed: `python -m docs.draw_detections DATA REP DEPLOYED`.

DATA: the data.yaml of a detection data set. REP, DEPLOYED: a rep checkpoint of ultralytics, and the file that
`yolorep deploy` wrote from it. The deployed model runs in a process in which yolorep cannot be imported. Writes the
picture docs/pictures/detections.jpg and the counts benchmarks/results/detections.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from docs.svg import PICTURES

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "detections.json"
COLOURS = ("#e4572e", "#2e5de4", "#8a2ee4")  # by class
COLUMNS = ("truth", "trained: 28 blocks with branches", "deployed: stock ultralytics, no yolorep")
SHOWN = 2  # images in the picture, spread over the data set
CONFIDENCE = 0.4  # least confidence of a box that is counted and drawn
IMGSZ = 320
DETECT = """
import json, sys
deployed, weights, folder, confidence, imgsz = sys.argv[1:]
if deployed == "True":
    sys.modules["yolorep"] = None  # an import of it fails from here on
else:
    from yolorep.hosts import uninstall
    uninstall()  # else the host's fuse() folds the branches before it detects
from ultralytics import YOLO
results = YOLO(weights).predict(folder, conf=float(confidence), imgsz=int(imgsz), device="cpu", verbose=False)
print(json.dumps({r.path: r.boxes.data.tolist() for r in results}))
"""
Boxes = dict[str, list[list[float]]]  # image file to rows of x1, y1, x2, y2, confidence, class


def detect(weights: Path, images: Path, *, deployed: bool) -> Boxes:
    """What a checkpoint finds on every image of a folder, in a fresh process; branches are not folded for it."""
    arguments = [str(value) for value in (deployed, weights, images, CONFIDENCE, IMGSZ)]
    done = subprocess.run([sys.executable, "-c", DETECT, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(before: Boxes, after: Boxes) -> dict[str, Any]:
    """Number of boxes and the largest differences of those in the same place of both lists."""
    counts = [sum(map(len, boxes.values())) for boxes in (before, after)]
    pairs = [pair for file in before for pair in zip(before[file], after[file], strict=False)]
    position = max(abs(a - b) for one, other in pairs for a, b in zip(one[:4], other[:4], strict=True))
    confidence = max(abs(one[4] - other[4]) for one, other in pairs)
    return {
        "images": len(before),
        "boxes_with_branches": counts[0],
        "boxes_deployed": counts[1],
        "other_class": sum(one[5] != other[5] for one, other in pairs),
        "largest_position_difference_px": position,
        "largest_confidence_difference": confidence,
    }


def truth(image: Path, width: int, height: int) -> list[list[float]]:
    """The labelled boxes of an image, as rows like those of `detect` with confidence 1."""
    label = Path(*("labels" if part == "images" else part for part in image.with_suffix(".txt").parts))
    rows = [list(map(float, line.split())) for line in label.read_text().splitlines()]
    return [
        [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height, 1.0, kind]
        for kind, x, y, w, h in rows
    ]


def draw(files: list[str], before: Boxes, after: Boxes, names: dict[int, str]) -> Figure:
    """One row for each image, one column each for the truth, the trained and the deployed model."""
    figure = Figure(figsize=(11, 2.95 * len(files) + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(files), 3, squeeze=False)
    for title, axis in zip(COLUMNS, axes[0], strict=True):
        axis.set_title(title, fontsize=10)
    for row, file in zip(axes, files, strict=True):
        image = imread(file)
        boxes = truth(Path(file), image.shape[1], image.shape[0]), before[file], after[file]
        for axis, found in zip(row, boxes, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            for x1, y1, x2, y2, _, kind in found:
                colour = COLOURS[int(kind) % len(COLOURS)]
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.4))
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS[k], label=name) for k, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def main(data: Path, rep: Path, deployed: Path) -> None:
    """Detect with both, write the picture and the record, and print the record."""
    content = yaml.safe_load(data.read_text())
    images = (data.parent / content["val"]).resolve()
    before = detect(rep, images, deployed=False)
    after = detect(deployed, images, deployed=True)
    train_args = torch.load(rep, map_location="cpu", weights_only=False)["train_args"]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "packages": {name: version(name) for name in ("yolorep", "ultralytics", "torch")},
        "checkpoint": {name: train_args[name] for name in ("model", "epochs", "imgsz", "batch", "nbs", "seed")},
        "data": data.parent.name,
        "imgsz": IMGSZ,
        "confidence": CONFIDENCE,
        **compare(before, after),
    }
    files = sorted(before)
    chosen = files[:: len(files) // SHOWN][:SHOWN]
    picture = draw(chosen, before, after, dict(enumerate(content["names"].values())))
    picture.savefig(PICTURES / "detections.jpg", dpi=90, pil_kwargs={"quality": 82})
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
