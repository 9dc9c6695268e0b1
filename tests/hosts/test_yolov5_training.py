"""Every way in which the YOLOv5 host rebuilds a model while training keeps its rep blocks; run with no network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import launch, needs_package
from tests.processes import yolorep

pytestmark = needs_package

BLOCKS = 28  # of yolov5n-rep.yaml: 6 Conv_C3 and the 2 convolutions of its 11 bottlenecks
COUNT = """
import sys, torch
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.stock_layers import rep_blocks
make_runnable()
for file in sys.argv[1:]:
    checkpoint = torch.load(file, weights_only=False)
    model = checkpoint.get("ema") or checkpoint["model"]
    print(len(rep_blocks(model)), model.model[-1].nc)
"""
TRAIN = ["train.py", "--img", "64", "--batch", "4", "--workers", "0", "--device", "cpu", "--noplots", "--noautoanchor"]


def blocks_and_classes(*files: Path) -> list[list[int]]:
    return [[int(n) for n in line.split()] for line in run_python(COUNT, *files).splitlines()[-len(files) :]]


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two epochs from the bare name of a YAML that yolorep ships, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("yolov5")
    options = ["--cfg", "yolov5n-rep.yaml", "--weights", "", "--data", tiny_dataset, "--epochs", "2"]
    printed = launch(*TRAIN, *options, "--save-period", "1", "--project", "runs", "--name", "rep", cwd=folder)
    while_it_trains, validated = re.findall(r"YOLOv5n-rep summary: (\d+) layers, (\d+) parameters", printed)
    assert int(while_it_trains[1]) > 1_900_000
    assert validated == ("157", "1761871")  # those of stock YOLOv5n
    return folder / "runs" / "rep"


def test_yolov5_training_keeps_blocks_from_a_shipped_yaml(trained: Path) -> None:
    weights = trained / "weights"
    assert blocks_and_classes(weights / "epoch0.pt", weights / "best.pt", weights / "last.pt") == [[BLOCKS, 2]] * 3


def test_yolov5_training_keeps_blocks_on_resume(trained: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(trained, tmp_path / "runs" / "rep") / "weights"
    (weights / "last.pt").unlink()
    printed = launch("train.py", "--resume", "runs/rep/weights/epoch0.pt", cwd=tmp_path)
    assert "Resuming training from" in printed
    transferred, total = map(int, re.search(r"Transferred (\d+)/(\d+) items", printed).groups())  # type: ignore[union-attr]
    assert transferred == total
    assert blocks_and_classes(weights / "last.pt") == [[BLOCKS, 2]]


STOCK = """
import sys, torch
from yolorep.hosts.yolov5.compat import make_runnable
make_runnable()
for file in sys.argv[1:]:
    model = torch.load(file, weights_only=False)["model"]
    kinds = {type(module).__module__.partition(".")[0] for module in model.modules()}
    print(sorted(kinds), model.yaml["rep"]["block"])
"""


def test_yolov5_trains_and_resumes_a_stock_model_with_repopt(tiny_dataset: Path, tmp_path: Path) -> None:
    """The optimizer of the resumed run has its masks again, and every checkpoint is the tree's own layers."""
    options = ["--cfg", "yolov5n.yaml", "--weights", "", "--rep", "repopt", "--data", tiny_dataset, "--epochs", "2"]
    printed = launch(*TRAIN, *options, "--save-period", "1", "--project", "runs", "--name", "repopt", cwd=tmp_path)
    told = re.findall(r"yolorep: repopt steps the kernels of \d+ convolutions by masks", printed)
    assert len(told) == 1
    weights = tmp_path / "runs" / "repopt" / "weights"
    (weights / "last.pt").unlink()
    printed = launch("train.py", "--resume", "runs/repopt/weights/epoch0.pt", cwd=tmp_path)
    assert told[0] in printed
    found = run_python(STOCK, weights / "epoch0.pt", weights / "last.pt").splitlines()[-2:]
    assert found == ["['models', 'torch'] repopt"] * 2 or found == ["['torch', 'yolov5'] repopt"] * 2
    said = yolorep("deploy", weights / "last.pt", "out.pt", cwd=tmp_path, code=2)
    assert "has no rep blocks: it is deployed, or stock, already" in " ".join(said.split())


def test_yolov5_validates_and_detects_with_a_rep_checkpoint(trained: Path, tiny_dataset: Path) -> None:
    common = ["--weights", trained / "weights" / "best.pt", "--img", "64", "--device", "cpu", "--project", "runs"]
    for script in (  # both fuse the model first, and print what it then is
        ["val.py", "--data", tiny_dataset, "--batch", "4", "--workers", "0"],
        ["detect.py", "--source", tiny_dataset.parent / "images" / "val", "--conf-thres", "0.0001", "--save-txt"],
    ):
        printed = launch(*script, *common, cwd=trained.parents[1])
        assert "YOLOv5n-rep summary: 157 layers, 1761871 parameters" in printed


EXPAND = """
import sys, torch
from importlib import import_module
from yolorep import expand
from yolorep.hosts.yolov5.compat import make_runnable
make_runnable()
from yolov5.models.yolo import Model
model = Model(str(import_module("yolov5").__path__[0]) + "/models/yolov5n.yaml")
torch.save({"model": expand(model, "repvgg", identity="conv"), "epoch": -1}, "expanded.pt")
"""


def test_yolov5_fine_tunes_an_expanded_checkpoint_with_other_classes(tiny_dataset: Path, tmp_path: Path) -> None:
    run_python(EXPAND, cwd=tmp_path)
    options = ["--weights", "expanded.pt", "--data", tiny_dataset, "--epochs", "1", "--project", "runs"]
    printed = launch(*TRAIN, *options, "--name", "tuned", cwd=tmp_path)
    transferred, total = map(int, re.search(r"Transferred (\d+)/(\d+) items", printed).groups())  # type: ignore[union-attr]
    assert total - transferred == 6  # the head's three convolutions, whose size follows the number of classes
    before, after = blocks_and_classes(tmp_path / "expanded.pt", tmp_path / "runs" / "tuned" / "weights" / "last.pt")
    assert before[0] == after[0] > BLOCKS
    assert (before[1], after[1]) == (80, 2)


def test_yolov5_stock_weights_fill_the_dense_branches(coco_weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    options = ["--cfg", "yolov5n-rep.yaml", "--weights", coco_weights, "--data", tiny_dataset, "--epochs", "1"]
    printed = launch(*TRAIN, *options, "--project", "runs", "--name", "rep", cwd=tmp_path)
    # 349 tensors of YOLOv5n but the anchors and the head's three convolutions.
    assert re.search(r"Transferred 342/\d+ items", printed)
    assert blocks_and_classes(tmp_path / "runs" / "rep" / "weights" / "last.pt") == [[BLOCKS, 2]]


START = """
import sys, torch
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.hosts.shipped import find_yaml
make_runnable()
from yolov5.models.yolo import Model
from yolov5.utils.general import intersect_dicts

weights = torch.load(sys.argv[1], weights_only=False)["model"].float()
seen = []
for cfg in (weights.yaml, find_yaml("yolov5n-rep.yaml")):
    model = Model(cfg, nc=2)  # as train.py does it
    model.load_state_dict(intersect_dicts(weights.state_dict(), model.state_dict(), exclude=["anchor"]), strict=False)
    model.model[-1].register_forward_pre_hook(lambda module, inputs: seen.append([x.clone() for x in inputs[0]]))
    with torch.no_grad():
        torch.manual_seed(0)
        model.eval()(torch.rand(2, 3, 128, 128))
for stock, rep in zip(*seen, strict=True):
    print(float((stock - rep).abs().max() / stock.abs().max()))
"""


def test_yolov5_stock_weights_start_as_the_stock_function(coco_weights: Path, tmp_path: Path) -> None:
    errors = [float(line) for line in run_python(START, coco_weights, cwd=tmp_path).splitlines()[-3:]]
    assert max(errors) <= 1e-6  # at each of the three scales that reach the head


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["val.py", "--weights", "missing.pt", "--data", "{data}"],
            "missing.pt does not exist, and it is not downloaded offline",
        ),
        (
            ["train.py", "--weights", "", "--cfg", "yolov5q-rep.yaml", "--data", "{data}"],
            "File not found: yolov5q-rep.yaml",
        ),
        (
            ["train.py", "--weights", "", "--cfg", "bad.yaml", "--data", "{data}", "--device", "cpu"],
            "block 'repvggg' is unknown",
        ),
        (["train.py", "--weights", "", "--cfg", "yolov5n-rep.yaml", "--data", "coco128.yaml"], "no images in"),
    ],
)
def test_yolov5_wrong_arguments_are_one_sentence(
    tiny_dataset: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "nc: 2\ndepth_multiple: 1.0\nwidth_multiple: 1.0\nanchors: 3\n"
        "backbone: [[-1, 1, Conv_C3, [8, 3, 2, {block: repvggg}]]]\nhead: [[[0], 1, Detect, [nc, anchors]]]\n"
    )
    printed = launch(*(a.format(data=tiny_dataset) for a in arguments), cwd=tmp_path, code=2)
    assert says in printed.splitlines()[-1]
    assert printed.splitlines()[-1].startswith("yolorep: ")
    assert "Traceback" not in printed
