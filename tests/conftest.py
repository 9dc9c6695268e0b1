"""Fixtures that every test may use: real data where it is present, generated data everywhere, hosts kept offline."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import helpers
from yolorep.hosts.offline import go_offline

ROOT = Path(__file__).resolve().parent.parent
# Files that take longest for their number of tests: begun first, so that no worker waits for another one at the end.
LONG = (
    *("docs/test_pages.py", "hosts/test_network.py", "blocks/test_grid.py", "compare/test_compare.py"),
    *("hosts/test_yolov5_training.py", "commands/test_quantize.py", "commands/test_demo.py", "commands/test_kills.py"),
    *("commands/test_quantize_finetune.py", "hosts/test_distributed.py", "benchmarks/test_benchmark_gpu.py"),
    *("hosts/test_old_trees.py", "hosts/test_gallery.py", "commands/test_plugins.py", "hosts/test_evaluate.py"),
    *("hosts/test_yolov5_tasks.py", "hosts/test_yolov5.py", "commands/test_expand_deploy_verify.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module, and so any host, is imported: settings in a temporary folder, and no network."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the processes of one test run share the cores
    if "YOLO_CONFIG_DIR" not in os.environ:
        os.environ["YOLO_CONFIG_DIR"] = folder = tempfile.mkdtemp(prefix="yolorep-config-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist keeps the order below
    go_offline()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several workers, put long files first, then those with many tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    names = {item.path: item.path.relative_to(ROOT / "tests").as_posix() for item in items}
    counts = Counter(item.path for item in items)
    place = {path: LONG.index(name) if name in LONG else len(LONG) for path, name in names.items()}
    items.sort(key=lambda item: (place[item.path], -counts[item.path], names[item.path]))


def pytest_collection_finish() -> None:
    """Keep the garbage collector, which the hosts call, from the objects of the imported libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: $YOLOREP_DATA, else ../shared/data from the repository's root. Never written to."""
    folder = Path(os.environ.get("YOLOREP_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set YOLOREP_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def bccd(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private copy of the BCCD data set; its `data.yaml` names the folders beside it."""
    return _copy(shared_data / "bccd", tmp_path_factory)


@pytest.fixture(scope="session")
def coco128(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private copy of COCO128; its `data.yaml` names the folders beside it."""
    return _copy(shared_data / "coco128", tmp_path_factory)


@pytest.fixture(scope="session")
def few_coco(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private folder with the first 24 images of COCO128, their labels and a `data.yaml`."""
    whole, folder = shared_data / "coco128", tmp_path_factory.mktemp("coco") / "few"
    if not whole.is_dir():
        pytest.skip("no coco128 in the real data")
    for kind, ending in (("images", "jpg"), ("labels", "txt")):
        (folder / kind / "train2017").mkdir(parents=True)
        for image in sorted((whole / "images" / "train2017").iterdir())[:24]:
            source = whole / kind / "train2017" / f"{image.stem}.{ending}"
            if source.is_file():  # an image without objects has no labels
                shutil.copy(source, folder / kind / "train2017")
    shutil.copy(whole / "data.yaml", folder)
    return folder


@pytest.fixture(scope="session")
def coco_weights(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private copy of `yolov5n-coco.pt`, a checkpoint of a YOLOv5 tree trained on COCO."""
    source = shared_data / "weights" / "yolov5n-coco.pt"
    if not source.is_file():
        pytest.skip(f"no {source.name} in the real data")
    return Path(shutil.copy(source, tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `data.yaml` of 8 + 4 generated images, 64 px, with rectangles of two colours, which are the two classes."""
    return helpers.write_rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture
def detector() -> Callable[[str], nn.Module]:
    """A fresh copy of ultralytics' detection model of a YAML, in evaluation mode, with random batch norms."""
    pytest.importorskip("ultralytics")
    return lambda yaml: copy.deepcopy(_detector(yaml))


@pytest.fixture
def stock(detector: Callable[[str], nn.Module]) -> nn.Module:
    """ultralytics' own YOLOv5n."""
    return detector("yolov5n.yaml")


@pytest.fixture
def rep(detector: Callable[[str], nn.Module]) -> nn.Module:
    """The YOLOv5n of rep rows that yolorep ships."""
    return detector("yolov5n-rep.yaml")


@functools.cache
def _detector(yaml: str) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return helpers.randomize_(DetectionModel(yaml, verbose=False)).eval()


def _copy(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not source.is_dir():
        pytest.skip(f"no {source.name} in the real data")
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("data") / source.name))
