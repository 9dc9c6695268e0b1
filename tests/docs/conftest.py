"""The folder in which the examples of a page run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx
import pytest

from tests import helpers
from yolorep.calibration import calibration_files, letterboxed
from yolorep.hosts.ultralytics.exporter import export_onnx
from yolorep.quantization.graph import float_nodes
from yolorep.quantization.int8 import quantize_onnx
from yolorep.quantization.schemes import SCHEMES

TREE = "runs/train/exp/weights/best.pt"  # where a YOLOv5 tree leaves a checkpoint
ULTRALYTICS = "runs/detect/train/weights/best.pt"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has before a page begins. The checkpoints are of untrained models: only their form matters."""
    folder = tmp_path_factory.mktemp("reader")
    helpers.write_rectangles(folder)
    _ultralytics(folder)
    _quantized(folder)
    _yolov5(folder)
    return folder


@pytest.fixture
def workshop(prepared: Path, tmp_path: Path) -> Path:
    """A private copy of it for one page."""
    return Path(shutil.copytree(prepared, tmp_path / "page"))


def _ultralytics(folder: Path) -> None:
    from ultralytics import YOLO

    for yaml, file in (("yolo11n.yaml", "yolo11n.pt"), ("yolov5n-rep.yaml", ULTRALYTICS)):
        model = YOLO(yaml)
        helpers.sure_(helpers.randomize_(model.model))
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        model.save(folder / file)


def _quantized(folder: Path) -> None:
    """What `yolorep quantize` writes, without the report: an untrained model has no figures that could be judged."""
    with tempfile.TemporaryDirectory() as place:
        source = export_onnx(folder / "yolo11n.pt", Path(place), 64)
        graph = onnx.load(source)
        (name,) = (each.name for each in graph.graph.input)
        images = calibration_files(folder / "data.yaml", 2)
        feeds = [{name: letterboxed(image, 64)} for image in images]
        quantize_onnx(source, folder / "best-int8.onnx", SCHEMES["minmax"], lambda: feeds, float_nodes(graph))


def _yolov5(folder: Path) -> None:
    """In a process of its own, because a tree and ultralytics have modules of the same names."""
    code = (
        "import sys, torch; from pathlib import Path; from yolorep.hosts.yolov5.compat import tree_modules\n"
        "from yolorep.hosts.yolov5.tree import find_tree; from yolorep.hosts.shipped import shipped\n"
        "from tests.helpers import randomize_, sure_\n"
        "tree = find_tree()\n"
        "yolo = tree_modules(tree, 'models.yolo')[0]\n"
        "yamls = tree / 'models' / 'yolov5n.yaml', shipped()['yolov5n-rep.yaml']\n"
        "for yaml, file in zip(yamls, sys.argv[1:]):\n"
        "    model = sure_(randomize_(yolo.Model(str(yaml), nc=2))).eval().half()\n"
        "    model.names = {0: 'red', 1: 'blue'}\n"
        "    torch.save({'model': model, 'ema': None, 'epoch': -1, 'optimizer': None}, file)\n"
    )
    (folder / TREE).parent.mkdir(parents=True, exist_ok=True)
    helpers.run_python(code, folder / "yolov5n.pt", folder / TREE, cwd=folder)
