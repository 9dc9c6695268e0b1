"""The hooks in ultralytics: models by name, rows and policies, fuse, and everything put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from tests.gallery import GALLERY
from tests.helpers import assert_same_outputs, randomize_, run_python
from yolorep import HostError, deploy, expand, hosts
from yolorep.hosts.hooks import MARK
from yolorep.hosts.shipped import shipped
from yolorep.hosts.ultralytics import model_hooks as adapter
from yolorep.stock_layers import rep_blocks

tasks = pytest.importorskip("ultralytics.nn.tasks")

# rep YAML and the YAML of ultralytics that it deploys to
STOCK = {f"yolov5{scale}-rep.yaml": f"yolov5{scale}.yaml" for scale in "nsmlx"}
STOCK |= {
    "yolov5s6-rep.yaml": "yolov5s-p6.yaml",
    "yolov6n-rep.yaml": "yolov6n.yaml",
    "yolov6s-rep.yaml": "yolov6s.yaml",
}
DETECTORS = sorted(name for name in shipped() if not name.startswith("repvgg-"))
Detector = Callable[[str], nn.Module]


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


def build(yaml: str | dict) -> nn.Module:
    return tasks.DetectionModel(copy.deepcopy(yaml), verbose=False)


def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, dtype=torch.float64)


@pytest.mark.parametrize("yaml", DETECTORS)
def test_shipped_models_build_by_name_anywhere(yaml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And deploy to the layers that ultralytics' own YAML gives, key for key and shape for shape."""
    monkeypatch.chdir(tmp_path)
    model = build(yaml)
    assert rep_blocks(model)
    deployed = deploy(model.eval(), inplace=True)
    if yaml in STOCK:
        assert layout(deployed) == layout(build(STOCK[yaml]))
    assert layout(build(deployed.yaml)) == layout(deployed)


def test_every_shipped_model_has_a_known_stock_form() -> None:
    own_form = {"yolov5s-rep-k33.yaml", "yolov5s-repvgg.yaml", "yolov5n-seg-rep.yaml", "yolov5s-seg-rep.yaml"}
    assert set(DETECTORS) - set(STOCK) == own_form | set(GALLERY)


@pytest.mark.parametrize("yaml", DETECTORS)
def test_shipped_files_name_each_key_once(yaml: str) -> None:
    keys = [line.split(":")[0] for line in shipped()[yaml].read_text().splitlines() if line[:1].isalpha()]
    written = ["base", "nc", "depth_multiple", "width_multiple", "activation", "rep", "anchors", "backbone", "head"]
    assert keys == [key for key in written if key in keys]
    assert "base" in keys or set(written) - {"base", "activation", "rep"} <= set(keys)


def test_the_repvgg_backbone_has_blocks_only(detector: Detector) -> None:
    model = detector("yolov5s-repvgg.yaml")
    assert {row[2] for row in model.yaml["backbone"]} == {"Conv_C3", "SPPF"}
    assert {type(layer).__name__ for layer in model.model[:9]} == {"Conv_C3", "Sequential"}


def test_a_file_in_the_working_directory_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shipped()["yolov5n-rep.yaml"].read_text().replace("nc: 80", "nc: 3")
    (tmp_path / "yolov5n-rep.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert build("yolov5n-rep.yaml").yaml["nc"] == 3


def test_stock_models_are_built_as_ever(detector: Detector) -> None:
    assert not rep_blocks(detector("yolov5n.yaml"))
    assert not rep_blocks(detector("yolov8n.yaml"))


def test_kernel_sizes_3_3_deploy_to_3x3_bottlenecks(detector: Detector) -> None:
    stock, deployed = layout(build("yolov5s.yaml")), layout(deploy(detector("yolov5s-rep-k33.yaml")))
    wider = [(key, shape) for (key, shape), other in zip(deployed, stock, strict=True) if (key, shape) != other]
    assert wider
    assert all(".m." in key and key.endswith("cv1.conv.weight") and shape[2:] == (3, 3) for key, shape in wider)


@pytest.mark.parametrize(
    "row", ["[-1, 1, Conv_C3, [16, 3, 2, {se: true}]]", "[-1, 1, BottleneckRep, [16, {k: [3, 3]}]]"]
)
def test_rows_of_each_kind_build_fold_and_rebuild(row: str, tmp_path: Path) -> None:
    rows = f"[-1, 1, Conv, [16, 3, 2]]\n  - {row}\n  - [-1, 1, Conv_C3, [16, 3, 2, {{identity: average}}]]"
    file = tmp_path / "small.yaml"
    file.write_text(f"nc: 2\nbackbone:\n  - {rows}\nhead:\n  - [[1, 2], 1, Detect, [nc]]\n")
    model = randomize_(build(tasks.yaml_model_load(file))).eval().double()
    x = image()
    deployed = deploy(model)
    assert_same_outputs(model(x), deployed(x))
    assert layout(build(deployed.yaml)) == layout(deployed)
    assert len(rep_blocks(build(model.yaml))) == len(rep_blocks(model)) > 1


@pytest.mark.parametrize(
    "make", [lambda rep: rep, lambda rep: expand(deploy(rep), select=[1, 2])], ids=["rows", "policy"]
)
@pytest.mark.parametrize("training", [False, True])
def test_fuse_deploys_and_fuses(detector: Detector, make: Callable, training: bool) -> None:
    model = make(detector("yolov5n-rep.yaml").double())
    x = image()
    expected = model(x)
    fused = model.train(training).fuse(verbose=False)
    assert fused is model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert fused.is_fused()
    assert not rep_blocks(fused)
    assert_same_outputs(expected, fused.eval()(x))
    assert_same_outputs(expected, fused.fuse(verbose=False)(x))


def test_a_model_of_few_norms_is_fused_too(tmp_path: Path) -> None:
    """ultralytics takes a model with fewer than ten norm layers for a fused one."""
    file = tmp_path / "few.yaml"
    file.write_text("nc: 2\nbackbone:\n  - [-1, 1, Conv_C3, [16, 3, 2]]\nhead:\n  - [-1, 1, Classify, [nc]]\n")
    model = randomize_(tasks.ClassificationModel(tasks.yaml_model_load(file), verbose=False)).eval().double()
    x = image()
    expected = model(x)
    assert len(rep_blocks(model)) == 1
    assert_same_outputs(expected, model.fuse(verbose=False)(x))
    assert not rep_blocks(model)


def test_fuse_leaves_the_yaml_so_that_training_goes_on_with_branches(detector: Detector) -> None:
    fused = detector("yolov5n-rep.yaml").fuse(verbose=False)
    assert len(rep_blocks(build(fused.yaml))) == 28


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: in_yolo(model)], ids=["DataParallel", "YOLO"])
def test_wrapped_models_expand_and_deploy_as_what_they_hold(detector: Detector, wrap: Callable) -> None:
    expanded = expand(wrap(detector("yolov5n.yaml")), select=1)
    inner = expanded.module if isinstance(expanded, nn.DataParallel) else expanded.model
    assert rep_blocks(inner) == ["model.1"]
    assert inner.yaml["rep"]["select"] == [1]
    deployed = deploy(expanded)
    inner = deployed.module if isinstance(deployed, nn.DataParallel) else deployed.model
    assert not rep_blocks(inner)
    assert "rep" not in inner.yaml


def in_yolo(model: nn.Module) -> nn.Module:
    from ultralytics import YOLO

    yolo = YOLO("yolov5n.yaml")
    yolo.model = model
    return yolo


@pytest.mark.parametrize("yaml", ["yolov5n-rep.yaml", "yolov5s-rep-k33.yaml"])
def test_a_deployed_model_expands_and_rebuilds_with_as_many_blocks(detector: Detector, yaml: str) -> None:
    expanded = expand(deploy(detector(yaml)))
    assert len(rep_blocks(build(expanded.yaml))) == len(rep_blocks(expanded)) == 48


@pytest.mark.parametrize("source", [lambda d: d("yolov5n.yaml"), lambda d: deploy(d("yolov5n-rep.yaml"))])
def test_loading_stock_weights_of_other_classes_keeps_the_policys_blocks(detector: Detector, source: Callable) -> None:
    model = tasks.DetectionModel({**detector("yolov5n.yaml").yaml, "rep": {}}, nc=3, verbose=False)
    assert len(rep_blocks(model)) == 48
    model.load(source(detector), verbose=False)
    assert len(rep_blocks(model)) == 48


def test_a_subclass_elsewhere_is_written_as_its_host_writes() -> None:
    class Mine(tasks.DetectionModel):
        pass

    deployed = deploy(Mine("yolov5n-rep.yaml", verbose=False).eval())
    assert deployed.yaml["head"][-1] == [[17, 20, 23], 1, "Detect", ["nc"]]


@pytest.fixture
def unhooked() -> Iterator[None]:
    hosts.uninstall()
    yield
    hosts.install()


def hooked() -> list[bool]:
    return [hasattr(f, MARK) for f in (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.fuse)]


def test_hooks_are_attached_once() -> None:
    hosts.install()
    before = (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.fuse)
    hosts.install()
    assert (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.fuse) == before
    assert not any(hasattr(getattr(f, MARK), MARK) for f in before)
    assert hosts.attached().count("ultralytics.nn.tasks") == 1


def test_uninstall_puts_everything_back(unhooked: None) -> None:
    assert hooked() == [False, False, False]
    assert not hosts.attached()
    with pytest.raises(FileNotFoundError):
        build("yolov5n-rep.yaml")
    hosts.install()
    assert hooked() == [True, True, True]
    assert rep_blocks(build("yolov5n-rep.yaml"))


@pytest.mark.parametrize(
    "missing",
    ["parse_model", "check_yaml", "yaml_model_load", "BaseModel.fuse", "BaseModel.load", "BaseModel.is_fused"],
)
def test_a_host_of_another_shape_is_a_host_error(missing: str) -> None:
    module = ModuleType("ultralytics.nn.tasks")
    module.__file__ = "site-packages/ultralytics/nn/tasks.py"
    module.parse_model = module.check_yaml = module.yaml_model_load = print
    module.BaseModel = SimpleNamespace(fuse=print, load=print, is_fused=print)
    owner = module.BaseModel if "." in missing else module
    delattr(owner, missing.rpartition(".")[2])
    before = dict(vars(module))
    with pytest.raises(HostError, match=rf"tasks\.py has no {missing}, which yolorep hooks; supported: ultralytics 8"):
        adapter.attach(module)
    assert dict(vars(module)) == before


@pytest.fixture
def checkpoint(detector: Detector, tmp_path: Path) -> Path:
    """A rep model, its deployed form, an image and the output of both."""
    model, x = detector("yolov5n-rep.yaml"), torch.rand(1, 3, 64, 64)
    torch.save({"rep": model, "stock": deploy(model), "x": x, "y": model(x)[0]}, tmp_path / "both.pt")
    return tmp_path / "both.pt"


LOAD = """
import sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
"""
FUSE = """
fused = saved[sys.argv[2]].fuse(verbose=False)
assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
y = saved["y"]
print(float((fused(saved["x"])[0] - y).abs().max() / y.abs().max()) < 1e-5)
"""


def test_unpickling_is_enough_to_fuse(checkpoint: Path) -> None:
    """A process that never names yolorep, as a host's own scripts, folds what it loads."""
    assert run_python(LOAD + FUSE, checkpoint, "rep") == "True\n"


def test_a_deployed_model_needs_no_yolorep(checkpoint: Path, tmp_path: Path) -> None:
    saved = torch.load(checkpoint, weights_only=False)
    del saved["rep"]
    torch.save(saved, tmp_path / "stock.pt")
    without = 'import sys; sys.modules["yolorep"] = None'
    assert run_python(f"{without}\n{LOAD}{FUSE}", tmp_path / "stock.pt", "stock") == "True\n"
