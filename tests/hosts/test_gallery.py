"""Every network of the gallery on both hosts: it builds, trains, deploys to stock layers, folds exactly and exports.

Also the key `base:`, which most of their YAMLs use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.gallery import ACTIVATIONS, GALLERY, assert_deploys, assert_trains
from tests.helpers import run_python
from tests.hosts.yolov5_helpers import HOSTS, launch, needs_package
from tests.processes import yolorep
from yolorep.errors import HostError
from yolorep.host import ULTRALYTICS
from yolorep.hosts.based_yaml import with_base
from yolorep.hosts.shipped import shipped
from yolorep.hosts.ultralytics.build import build
from yolorep.stock_layers import rep_blocks

tasks = pytest.importorskip("ultralytics.nn.tasks")
pytest.importorskip("onnxruntime")
SIX = ("yolov6n-rep.yaml", "yolov6s-rep.yaml")

ON_YOLOV5 = """
import json, sys
from pathlib import Path
import torch
from yolorep.hosts.yolov5.compat import tree_modules
tree, *names = sys.argv[1:]
yolo, losses = tree_modules(Path(tree), "models.yolo", "utils.loss")
from tests.gallery import assert_deploys, assert_trains
from yolorep.errors import HostError
from yolorep.hosts.shipped import find_yaml
before, refused = getattr(yolo.Conv, "default_act", None), []
for name in names:
    torch.manual_seed(0)
    try:
        model = yolo.Model(find_yaml(name), nc=2)
    except HostError as error:
        refused.append(f"{name}: {error}")
        continue
    assert getattr(yolo.Conv, "default_act", None) is before
    model.hyp = dict(box=0.05, cls=0.5, cls_pw=1, obj=1, obj_pw=1, anchor_t=4, fl_gamma=0, label_smoothing=0)
    model.gr = 1.0  # of v5.0
    assert_trains(model, lambda images, targets: losses.ComputeLoss(model)(model(images), targets)[0])
    assert_deploys(model)
print(json.dumps(refused))
"""


@pytest.mark.parametrize("name", [*GALLERY, *SIX])
def test_network_on_ultralytics(name: str) -> None:
    from ultralytics.cfg import get_cfg

    torch.manual_seed(0)
    model: Any = tasks.DetectionModel(name, nc=2, verbose=False)
    model.args = get_cfg()

    def loss_of(images: Tensor, targets: Tensor) -> Tensor:
        batch = {"img": images, "batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:]}
        return model.loss(batch)[0].sum()

    assert_trains(model, loss_of)
    assert_deploys(model)


@pytest.mark.parametrize("family", ["efficientrep", "csprepresnet"])
@pytest.mark.parametrize("tree", HOSTS, ids=lambda tree: Path(tree).name)
def test_networks_on_yolov5(tree: Path, family: str, tmp_path: Path) -> None:
    """A tree before v7.0, which knows no activation but SiLU, refuses the others."""
    names = [name for name in GALLERY if family in name]
    refused = json.loads(run_python(ON_YOLOV5, tree, *names, cwd=tmp_path).splitlines()[-1])
    if "default_act" in (tree / "models" / "common.py").read_text():
        assert refused == []
    elif "class SPPF" not in (tree / "models" / "common.py").read_text():
        assert len(refused) == len(names)
    else:
        assert [line.split(":")[0] for line in refused] == [name for name in names if ACTIVATIONS[name] == "ReLU"]
        assert all("torch.nn.ReLU() needs YOLOv5 v7.0 or later" in line for line in refused)


@pytest.mark.parametrize("name", GALLERY)
def test_activation_is_that_of_the_name(name: str) -> None:
    model: Any = build(name)
    kinds = {type(m.act).__name__ for m in model.modules() if hasattr(m, "conv") and hasattr(m, "act")}
    assert kinds - {"Identity"} == {ACTIVATIONS[name]}


@pytest.mark.parametrize("scale", "ns")
def test_second_convolutions_of_bottlenecks_have_the_published_branch(scale: str) -> None:
    """That of PP-YOLOE's RepVggBlock: 1x1 alone, in every bottleneck and nowhere else."""
    model: Any = build(f"yolov5{scale}-csprepresnet.yaml")
    bottlenecks = [name for name, m in model.named_modules() if type(m).__name__ == "Bottleneck"]
    assert rep_blocks(model) == [f"{name}.cv2" for name in bottlenecks]
    assert {tuple(dict(model.get_submodule(name).branches())) for name in rep_blocks(model)} == {("branch_1x1",)}
    assert {m.cv1.conv.kernel_size for m in map(model.get_submodule, bottlenecks)} == {(3, 3)}


def test_an_epoch_on_ultralytics(tiny_dataset: Path, tmp_path: Path) -> None:
    options = f"data={tiny_dataset}", "epochs=1", "imgsz=64", "device=cpu", "workers=0", f"project={tmp_path}/runs"
    yolorep("train", "model=yolov5n-efficientrep.yaml", *options, cwd=tmp_path)
    assert "35 blocks folded" in yolorep("deploy", next(tmp_path.rglob("last.pt")), "deployed.pt", cwd=tmp_path)


@needs_package
def test_an_epoch_on_yolov5(tiny_dataset: Path, tmp_path: Path) -> None:
    options = "--cfg", "yolov5n-silu-efficientrep.yaml", "--data", tiny_dataset, "--epochs", "1", "--imgsz", "64"
    launch("train.py", *options, "--weights", "", "--device", "cpu", "--workers", "0", "--batch", "4", cwd=tmp_path)
    assert "35 blocks folded" in yolorep("deploy", next(tmp_path.rglob("last.pt")), "deployed.pt", cwd=tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"base": "own.yaml"}, r"own.yaml: base: 'own.yaml' is not found; accepted: a YAML beside it"),
        ({"base": 3}, "base: 3 is not found"),
        ({"base": "other.yaml"}, "base: own.yaml leads back to own.yaml"),
    ],
)
def test_a_wrong_base_is_named(content: dict, says: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    (tmp_path / "other.yaml").write_text("base: own.yaml\n")
    own.write_text(yaml.safe_dump(content))
    with pytest.raises(HostError, match=says):
        build(str(own))


def test_a_base_is_found_beside_the_file_then_as_shipped_then_of_the_host(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    assert with_base({"base": "yolov6.yaml"}, own, ULTRALYTICS)["scales"]["n"]
    assert with_base({"base": "yolov5n-rep.yaml", "nc": 2}, own, ULTRALYTICS)["width_multiple"] == 0.25
    (tmp_path / "yolov5n-rep.yaml").write_text("nc: 3\nwidth_multiple: 1\n")
    assert with_base({"base": "yolov5n-rep.yaml", "nc": 2}, own, ULTRALYTICS) == {"nc": 2, "width_multiple": 1}


def test_no_two_shipped_files_have_the_same_rows() -> None:
    """But those of before the key `base`, which are also read by trees without yolorep's hooks."""
    new = [name for name in shipped() if name in (*GALLERY, *SIX)]
    rows = [text["backbone"] for text in (yaml.safe_load(shipped()[n].read_text()) for n in new) if "backbone" in text]
    assert len(rows) == len({json.dumps(row) for row in rows}) == 2
