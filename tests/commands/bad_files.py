"""The files that the table of bad inputs names, made once in one folder."""

from __future__ import annotations

import os
import zipfile
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.helpers import write_rectangles
from yolorep import expand

CONV, DETECT = [-1, 1, "Conv", [16, 3, 2]], [[1], 1, "Detect", ["nc"]]
LONG = "x" * 300


def model_yaml(*rows: list[Any], **top: Any) -> dict[str, Any]:
    """The dictionary of a detector that ultralytics builds in milliseconds; `rows` follow its first layer."""
    first = {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[10, 13, 16, 30, 33, 23]]}
    return {**first, "backbone": [list(CONV), *(rows or [list(CONV)])], "head": [deepcopy(DETECT)], **top}


def rep_row(name: str, *arguments: Any) -> dict[str, Any]:
    """`model_yaml` whose second row is this rep row."""
    return model_yaml([-1, 1, name, list(arguments)])


MODELS: dict[str, Any] = {
    "good": model_yaml(),
    "empty": "",
    "list": "[1, 2]",
    "text": "hello",
    "broken": "a: [",
    "date": "nc: 2020-99-99",
    "utf16": "nc: 2\nbackbone: []\n".encode("utf-16"),
    "binary": bytes(range(256)),
    "headless": {"nc": 2, "backbone": [CONV]},
    "backless": {"nc": 2, "head": [DETECT]},
    "empty-head": model_yaml(head=[]),
    "short-row": model_yaml([-1, 1, "Conv"]),
    "text-row": model_yaml("Conv"),  # type: ignore[arg-type]
    "unknown": model_yaml([-1, 1, "Nothing", [16]]),
    "huge": model_yaml([-1, 1, "Conv", [10**9, 3]]),
    "repeats": model_yaml([-1, 10**9, "Conv", [16]]),
    "negative": model_yaml([-1, 1, "Conv", [-16, 3]]),
    "channels-text": model_yaml([-1, 1, "Conv", ["many"]]),
    "no-arguments": model_yaml([-1, 1, "Conv", []]),
    "too-many": model_yaml([-1, 1, "Conv", [16, 3, 1, None, 1, 1, True, 9, 9]]),
    "from": model_yaml([7, 1, "Conv", [16]]),
    "program": model_yaml(activation="exec('import os')"),
    "program-row": model_yaml([-1, 1, "Conv", ["exec('1')"]]),
    "se-maybe": rep_row("Conv_C3", 16, {"se": "maybe"}),
    "se-3": rep_row("C3Rep", 16, {"se": 3}),
    "k-true": rep_row("C3Rep", 16, {"k": [True, 3]}),
    "k-negative": rep_row("C3Rep", 16, {"k": [-3, 3]}),
    "k-huge": rep_row("C3Rep", 16, {"k": [99999, 3]}),
    "rep-no-arguments": rep_row("Conv_C3"),
    "rep-too-many": rep_row("C3Rep", 16, True, 1, 0.5, 9),
    "rep-negative": rep_row("Conv_C3", -16),
    "rep-zero": rep_row("Conv_C3", 0),
    "rep-text": rep_row("Conv_C3", "16"),
    "rep-huge": rep_row("Conv_C3", 10**9),
    "rep-groups": rep_row("Conv_C3", 16, 3, 1, None, 3),
    "rep-even": rep_row("Conv_C3", 16, 2),
    "rep-block": rep_row("Conv_C3", 16, {"block": "nothing"}),
    "rep-option": rep_row("Conv_C3", 16, {"colour": "red"}),
    "policy-list": model_yaml(rep=["repvgg"]),
    "policy-block": model_yaml(rep={"block": 3}),
    "policy-name": model_yaml(rep="nothing"),
    "policy-select": model_yaml(rep={"select": ["model.99"]}),
    "policy-option": model_yaml(rep={"se": True}),
    "decay": model_yaml(equivalent_l2="maybe"),
}
DATA: dict[str, Any] = {
    "empty": "",
    "list": "[1, 2]",
    "broken": "a: [",
    "binary": bytes(range(256)),
    "no-val": {"train": "images/train", "nc": 2, "names": ["a", "b"]},
    "no-names": {"train": "images/train", "val": "images/val"},
    "elsewhere": {"path": "nowhere", "train": "images/train", "val": "images/val", "names": ["a", "b"]},
    "download": {
        "path": "nowhere",
        "train": "images/train",
        "val": "images/val",
        "names": ["a", "b"],
        "download": "touch HAS_RUN",
    },
}


def make(folder: Path) -> None:
    """Write all files; those of YOLOv5 where its package is installed."""
    if find_spec("yolov5") is not None:
        _yolov5(folder)
    write_rectangles(folder / "set", train=4, val=2)
    (folder / "data.yaml").write_text((folder / "set" / "data.yaml").read_text())
    of_yolov5 = {name: _with_anchors(content) for name, content in MODELS.items()}
    for kind, contents in (("m", MODELS), ("y", of_yolov5), ("d", DATA)):
        for name, content in contents.items():
            raw = yaml.safe_dump(content) if isinstance(content, dict) else content
            (folder / f"{kind}-{name}.yaml").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    _checkpoints(folder)
    _weights(folder)
    _paths(folder)


def _with_anchors(content: Any) -> Any:
    """The same dictionary with the head as YOLOv5 writes it."""
    if not isinstance(content, dict) or not content.get("head"):
        return content
    return {**content, "head": [[[1], 1, "Detect", ["nc", "anchors"]]]}


def _yolov5(folder: Path) -> None:
    """Write a checkpoint of the published package."""
    from yolorep.hosts.yolov5.compat import tree_modules

    (yolo,) = tree_modules(None, "models.yolo")
    model = yolo.DetectionModel(_with_anchors(model_yaml()), ch=3)
    torch.save({"model": model.half(), "epoch": -1}, folder / "y5.pt")
    torch.save({"model": expand(model.float(), select=1), "epoch": -1}, folder / "y5-rep.pt")


def _checkpoints(folder: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    def save(name: str, model: Any) -> None:
        model.args = {"task": "detect", "imgsz": 64}
        torch.save({"model": model, "epoch": -1, "train_args": {"imgsz": 64, "task": "detect"}}, folder / f"{name}.pt")

    good = DetectionModel(model_yaml(), verbose=False).eval()
    save("good", good)
    rep = expand(good, select=1)
    save("rep", rep)
    broken = deepcopy(rep)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    save("nan", broken)
    whole = (folder / "rep.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (folder / "flipped.pt").write_bytes(bytes(flipped))


def _weights(folder: Path) -> None:
    """Files of weights that are of no detector."""
    from torchvision.models import resnet18

    (folder / "text.pt").write_text("hello")
    (folder / "nothing.pt").write_bytes(b"")
    torch.save({"weight": torch.zeros(2)}, folder / "state.pt")
    torch.save(resnet18(num_classes=2), folder / "resnet.pt")
    torch.save({"model": None}, folder / "none.pt")
    torch.save([1, 2], folder / "list.pt")
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    torch.save({"linear.weight": torch.zeros(2, 8), "x": torch.zeros(2)}, folder / "repvgg.pth")
    np.save(folder / "array.npy", np.zeros(3))


def _paths(folder: Path) -> None:
    (folder / "folder.pt").mkdir()
    (folder / "folder.yaml").mkdir()
    (folder / "empty-folder").mkdir()
    (folder / "loop.pt").symlink_to("loop.pt")
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "loops").symlink_to("loops")
    (folder / "dangling.pt").symlink_to("nothing-there.pt")
    (folder / "no-image.jpg").write_text("hello")
    (folder / "broken.py").write_text("1 / 0")
    classes = folder / "classes"
    for name in ("a", "b"):
        (classes / name).mkdir(parents=True)
        for index in range(3):
            os.link(folder / "set" / "images" / "train" / "0.png", classes / name / f"{index}.png")
