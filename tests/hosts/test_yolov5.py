"""The hooks of the YOLOv5 host: on stand-in modules, and on the published package and trees in fresh processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import HOSTS, forget_trees, needs_package, plain
from yolorep import hosts
from yolorep.errors import BlockError, HostError
from yolorep.hosts.yolov5 import model_hooks


@pytest.fixture(autouse=True)
def utils(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """What a stand-in `models.yolo` has imported, in a process without any other tree."""
    forget_trees(monkeypatch)
    functions = {"utils.general": "intersect_dicts", "utils.torch_utils": "smart_optimizer"}
    modules = {name: ModuleType(name) for name in functions}
    for name, module in modules.items():
        setattr(module, functions[name], lambda *args: torch.optim.SGD([torch.zeros(1)], lr=1.0))
        monkeypatch.setitem(sys.modules, name, module)
    yield modules
    monkeypatch.undo()
    hosts.uninstall()
    hosts.install()  # a tree of an earlier test is there again, and a test has taken the hooks away without it


def fake_yolo(**changes: object) -> ModuleType:
    """A `models.yolo` with what the hooks need; a change to None takes a name away."""

    class BaseModel(nn.Module):
        def fuse(self) -> BaseModel:
            return self

    def parse_model(d: dict, ch: list) -> tuple:
        return nn.Sequential(), []

    module = ModuleType("models.yolo")
    names = {"BaseModel": BaseModel, "parse_model": parse_model, "check_yaml": lambda file: file, "Conv": nn.Conv2d}
    vars(module).update({name: value for name, value in {**names, **changes}.items() if value is not None})
    return module


def test_yolov5_attach_replaces_two_functions_once_and_gives_them_back() -> None:
    module = fake_yolo()
    before = module.parse_model, module.BaseModel.fuse
    first, again = model_hooks.attach(module), model_hooks.attach(module)
    assert module.parse_model is not before[0]
    assert module.BaseModel.fuse is not before[1]
    again.remove()
    first.remove()
    assert (module.parse_model, module.BaseModel.fuse) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"BaseModel": None}, "has no BaseModel.fuse or Model.fuse; supported: YOLOv5 v5.0"),
        ({"BaseModel": SimpleNamespace()}, "has no BaseModel.fuse"),
        ({"Conv": None}, "has no Conv"),
        ({"parse_model": lambda cfg, channels: None}, r"parse_model takes \(cfg, channels\), and yolorep hooks one"),
    ],
)
def test_yolov5_attach_refuses_a_changed_shape_and_changes_nothing(changes: dict, says: str) -> None:
    module = fake_yolo(**changes)
    before = dict(vars(module))
    with pytest.raises(HostError, match=says):
        model_hooks.attach(module)
    assert vars(module) == before


@pytest.mark.parametrize("name", ["utils.general", "utils.torch_utils"])
@pytest.mark.parametrize("empty", [False, True])
def test_yolov5_attach_refuses_a_tree_without_what_training_calls(
    name: str, empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    else:
        monkeypatch.delitem(sys.modules, name)
    module = fake_yolo()
    before = dict(vars(module)), module.BaseModel.fuse
    with pytest.raises(HostError, match=f"the tree of models.yolo has no {name}.*, which yolorep hooks"):
        model_hooks.attach(module)
    assert (dict(vars(module)), module.BaseModel.fuse) == before


def test_yolov5_attach_hooks_what_training_calls(utils: dict[str, ModuleType]) -> None:
    before = [dict(vars(module)) for module in utils.values()]
    hooks = model_hooks.attach(fake_yolo())
    rep = {"0.bn.weight": 1, "0.branch_1x1.conv.weight": 1}
    with pytest.raises(HostError, match="rep blocks of the weights"):
        utils["utils.general"].intersect_dicts(rep, {"0.bn.weight": 1})
    model = nn.Identity()
    model.yaml = {"equivalent_l2": True}  # type: ignore[assignment]
    with pytest.raises(BlockError, match="equivalent_l2 is defined for block repvgg"):
        utils["utils.torch_utils"].smart_optimizer(model)
    hooks.remove()
    assert [dict(vars(module)) for module in utils.values()] == before


@pytest.mark.parametrize("missing", [("parse_model",), ("BaseModel", "check_yaml")])
@pytest.mark.filterwarnings("ignore:models.yolo has no BaseModel.fuse")
def test_yolov5_attach_leaves_other_projects_alone(missing: tuple[str, ...]) -> None:
    module = fake_yolo(**dict.fromkeys(missing))
    before = dict(vars(module))
    model_hooks.attach(module)
    assert vars(module) == before


def test_yolov5_attach_says_which_tree_it_leaves_alone() -> None:
    with pytest.warns(UserWarning, match=r"models.yolo has no BaseModel.fuse.*no tree that yolorep knows"):
        model_hooks.attach(fake_yolo(BaseModel=None, check_yaml=None))


def test_yolov5_hooks_follow_install_and_uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_yolo()
    original = module.parse_model
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    hosts.install()
    try:
        assert "models.yolo" in hosts.attached()
        assert module.parse_model is not original
        hosts.uninstall()
        assert module.parse_model is original
        assert hosts.attached() == []
    finally:
        monkeypatch.delitem(sys.modules, "models.yolo")
        hosts.uninstall()
        hosts.install()


# Writes a checkpoint whose classes are named as in a tree ('models') or as in the package ('yolov5.models').
WRITE = """
import sys, torch
from importlib import import_module
from yolorep import expand
from yolorep.hosts.yolov5.compat import make_runnable
from tests.helpers import randomize_

make_runnable()
from yolov5.models.yolo import Model
import models.yolo, models.common

def write(file, package, rep):
    torch.manual_seed(0)
    model = randomize_(Model(str(import_module("yolov5").__path__[0]) + "/models/yolov5n.yaml")).eval()
    for m in model.modules():
        if package == "models" and type(m).__module__.startswith("yolov5."):
            m.__class__ = getattr(import_module(type(m).__module__.removeprefix("yolov5.")), type(m).__name__)
    if rep:
        model = randomize_(expand(model)).eval()
    torch.save({"model": model}, file)
"""
FUSE = """
from torch import nn
from yolov5.models.experimental import attempt_load

def norms(model):
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())

write("model.pt", {package!r}, {rep})
x = torch.rand(1, 3, 64, 64)
stored, fused = attempt_load("model.pt", fuse=False), attempt_load("model.pt")
with torch.no_grad():
    a, b = stored(x)[0], fused(x)[0]
print(type(fused).__module__, norms(stored), norms(fused), float((a - b).abs().max() / a.abs().max()))
"""


@needs_package
@pytest.mark.parametrize("package", ["models", "yolov5.models"])
@pytest.mark.parametrize("rep", [False, True])
def test_yolov5_package_fuses_checkpoints_of_either_name(tmp_path: Path, package: str, rep: bool) -> None:
    printed = run_python(WRITE + FUSE.format(package=package, rep=rep), cwd=tmp_path).split()[-4:]
    assert printed[0] == f"{package}.yolo"
    assert int(printed[1]) >= 57
    assert int(printed[2]) == 0
    assert float(printed[3]) < 1e-5


@needs_package
def test_yolov5_package_leaves_its_twins_layers_unfused_without_the_hooks(tmp_path: Path) -> None:
    code = WRITE + "from yolorep.hosts import uninstall\nuninstall()\n" + FUSE.format(package="models", rep=False)
    assert run_python(code, cwd=tmp_path).split()[-2] == "57"


@pytest.mark.parametrize("host", HOSTS)
def test_yolov5_detects_with_a_rep_checkpoint_in_its_own_script(host: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """No line of the script knows yolorep: reading the checkpoint brings the hooks."""
    code = (
        "import sys, torch; from pathlib import Path; from yolorep.hosts.yolov5.compat import tree_modules\n"
        "from yolorep.hosts.shipped import shipped\n"
        "yolo = tree_modules(Path(sys.argv[1]), 'models.yolo')[0]\n"
        "torch.save({'model': yolo.Model(str(shipped()['yolov5n-rep.yaml']), nc=2).eval()}, 'rep.pt')"
    )
    run_python(code, host, cwd=tmp_path)
    arguments = ["--weights", tmp_path / "rep.pt", "--source", tiny_dataset.parent / "images" / "val"]
    arguments += ["--img", "64", "--conf-thres", "0.99", "--device", "cpu", "--project", tmp_path / "runs"]
    printed = plain(host / "detect.py", *arguments, cwd=tmp_path)
    summary = next(line for line in printed.splitlines() if "summary:" in line.lower())
    # Stock YOLOv5n with two classes: its parameters once its batch norms are folded, and no more layers than it has.
    assert summary.startswith(("YOLOv5n-rep summary", "Model Summary"))  # the latter up to v6.0
    assert "1761871 parameters" in summary.replace(",", "")
