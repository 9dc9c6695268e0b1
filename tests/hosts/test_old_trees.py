"""Trees before YOLOv5 v6.2, and forks of them: their `Model` has no `BaseModel`, their layout differs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.helpers import assert_same, randomize_
from tests.hosts.yolov5_helpers import HOSTS, forget_trees, launch
from tests.processes import yolorep
from yolorep import expand, hosts
from yolorep.errors import HostError
from yolorep.hosts.yolov5 import old_trees
from yolorep.hosts.yolov5.tree import find_tree
from yolorep.stock_layers import rep_blocks

YAML = {"backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]], "head": [[-1, 1, "Conv", [16, 3, 1]]]}
COMMON = """
from torch import nn

class Conv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2 if p is None else p, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act is True else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def fuseforward(self, x):
        return self.act(self.conv(x))
"""
MODEL = """
import torch
from torch import nn
from models.common import *

def parse_model(d, ch):
    layers = []
    for f, n, m, args in d["backbone"] + d["head"]:
        layers.append(eval(m)(ch[-1], *args))
        ch.append(args[0])
    return nn.Sequential(*layers), []

class Model(nn.Module):
    def __init__(self, cfg, ch=3):
        super().__init__()
        self.yaml = cfg
        self.model, self.save = parse_model(dict(cfg), [ch])

    def forward(self, x):
        return self.model(x)

    def fuse(self):
        for m in self.model.modules():
            if type(m) is Conv and hasattr(m, "bn"):
                m.conv = torch.nn.utils.fuse_conv_bn_eval(m.conv, m.bn)
                delattr(m, "bn")
                m.forward = m.fuseforward
        return self
"""


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`models.yolo` of a fork of v5.0, hooked as it is imported."""
    files = {"models/__init__.py": "", "models/common.py": COMMON, "models/yolo.py": MODEL}
    monkeypatch.syspath_prepend(write_tree(tmp_path, files))
    forget_trees(monkeypatch)
    import models.yolo

    hosts.uninstall()
    hosts.install()  # an earlier test may have imported another `models.yolo`, which took the hook that waits for one
    yield models.yolo
    for name in ("models", "models.common", "models.yolo"):
        sys.modules.pop(name)
    monkeypatch.undo()
    hosts.uninstall()
    hosts.install()


def test_a_model_without_base_model_is_fused_and_rebuilt(fork: ModuleType) -> None:
    x = torch.rand(1, 3, 32, 32)
    rep = randomize_(expand(randomize_(fork.Model(YAML)).eval())).eval()
    assert len(rep_blocks(fork.Model(rep.yaml))) == 3
    expected = rep(x)
    fused = rep.fuse()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert_same(expected, fused(x))
    # The trees' TensorFlow exports build a fused model a second time, from the rows of its YAML.
    rows = {"backbone": [[-1, 1, "Conv_C3", [8, 3, 2]]], "head": [[-1, 1, "Conv", [16, 3]]], "rep": "repvgg"}
    written = fork.Model(rows).eval().fuse().yaml
    assert [row[2] for row in written["backbone"] + written["head"]] == ["Conv", "Conv"]
    assert len(rep_blocks(fork.Model(written))) == 2, "the policy stays for a model that is built again"


OLD = {
    "v5.0": ("utils/datasets.py", "utils/google_utils.py"),
    "v6.0 and v6.1": ("utils/datasets.py", "utils/downloads.py"),
}


@pytest.mark.parametrize("age", OLD)
def test_the_tree_of_the_working_directory_is_run_whatever_its_age(age: str, tmp_path: Path) -> None:
    names = ["models/yolo.py", "models/common.py", "utils/general.py", *OLD[age]]
    folder = write_tree(tmp_path, {**dict.fromkeys(names, ""), "detect.py": "print('mine')"})
    assert launch("detect.py", cwd=folder).strip() == "mine"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"models/yolo.py": "", "models/common.py": ""}, "is not a YOLOv5 tree .no utils/general.py"),
        ({"models/yolo.py": "class IDetect: ...", "models/common.py": "", "utils/general.py": ""}, "is a YOLOv7 tree"),
    ],
)
def test_a_folder_that_is_nearly_a_tree_is_refused_by_name(
    files: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published package is not run in its place."""
    forget_trees(monkeypatch)
    monkeypatch.chdir(write_tree(tmp_path, files))
    with pytest.raises(HostError, match=says):
        find_tree()


class Loss:
    """What build_targets of these trees does with grid indices."""

    def build_targets(self, index: Tensor, gain: Tensor) -> Tensor:
        return index.clamp_(0, gain[3] - 1)


def test_integer_tensors_are_clamped_by_float_bounds() -> None:
    index, gain = torch.tensor([-1, 3, 99]), torch.tensor([1.0, 1.0, 8.0, 8.0])
    with pytest.raises(RuntimeError, match="can't be cast"):
        Loss().build_targets(index.clone(), gain)
    module = ModuleType("utils.loss")
    module.ComputeLoss = type("ComputeLoss", (Loss,), {"build_targets": Loss.build_targets})  # type: ignore[attr-defined]
    old_trees._repair_loss(module)
    clamped = module.ComputeLoss().build_targets(index, gain)
    assert clamped.tolist() == [0, 3, 7]
    assert clamped.data_ptr() == index.data_ptr()


@pytest.mark.parametrize("path", [None, ".", "inner"])
def test_data_yaml_has_absolute_paths_for_a_tree_that_knows_no_path(path: str | None, tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    content = {"train": ["a", "b"], "val": "c", "names": {0: "red", 1: "blue"}} | ({"path": path} if path else {})
    data.write_text(yaml.safe_dump(content))
    (tmp_path / "copy").mkdir()
    copy = yaml.safe_load(old_trees.with_absolute_paths(data, tmp_path / "copy").read_text())
    root = tmp_path / (path or "")
    assert copy == {
        "train": [str(root / "a"), str(root / "b")],
        "val": str(root / "c"),
        "names": ["red", "blue"],
        "nc": 2,
    }


def test_onnx_export_is_by_torchscript_unless_asked_otherwise() -> None:
    seen: list[dict] = []
    original: Callable = lambda *args, **kwargs: seen.append(kwargs)  # noqa: E731
    old_trees._export(original, "model")
    old_trees._export(original, "model", dynamo=True)
    assert [kwargs["dynamo"] for kwargs in seen] == [False, True]


@pytest.mark.parametrize("tree", HOSTS)
def test_a_tree_trains_validates_detects_exports_and_deploys(tree: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Each step with the rep checkpoint, a failing export too, then validation and detection with the deployed one."""
    before_v6 = old_trees.reads_data_itself(tree)
    model = ["--cfg", "yolov5s.yaml", "--rep", "repvgg"] if before_v6 else ["--cfg", "yolov5n-rep.yaml"]
    short = ["--epochs", "1", "--batch", "4", "--workers", "0", "--noautoanchor"]
    common = ["--img", "64", "--device", "cpu"]
    train = ["train.py", "--weights", "", *model, "--data", tiny_dataset, "--project", tmp_path, "--name", "r"]
    for cache in tiny_dataset.parent.rglob("*.cache"):
        cache.unlink()  # another age's
    launch("--repo", tree, *train, *short, *common, cwd=tmp_path)
    weights, deployed = tmp_path / "r" / "weights" / "last.pt", tmp_path / "deployed.pt"
    export = ["models/export.py"] if before_v6 else ["export.py", "--include", "onnx"]
    launch("--repo", tree, *export, "--weights", weights, *common, cwd=tmp_path)
    assert weights.with_suffix(".onnx").is_file()
    if "dictConfig" in (tree / "utils" / "general.py").read_text():  # replaces its logger's handlers on import
        refused = ["export.py", "--include", "engine", "--weights", weights]  # TensorRT needs a GPU
        assert "yolorep: " in launch("--repo", tree, *refused, *common, cwd=tmp_path, code=2)
    printed = yolorep("deploy", weights, deployed, "--repo", tree, cwd=tmp_path)
    assert "verified in float64" in " ".join(printed.split())
    validate = "test.py" if before_v6 else "val.py"
    images = tiny_dataset.parent / "images" / "val"
    for file in (weights, deployed):
        given = ("--weights", file, "--data", tiny_dataset, "--batch", "4", *common)
        assert "mAP@" in launch("--repo", tree, validate, *given, cwd=tmp_path).replace("mAP50", "mAP@")
        launch("--repo", tree, "detect.py", "--weights", file, "--source", images, "--img-size", "64", cwd=tmp_path)
