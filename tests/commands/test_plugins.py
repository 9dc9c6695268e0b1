"""A user's own block is known to every command, to a run that is resumed, and to every process that a host starts."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import run_python
from tests.hosts.test_distributed import launch
from tests.hosts.yolov5_helpers import needs_package
from tests.processes import LAUNCH, yolorep
from yolorep import plugins
from yolorep.blocks import BLOCKS
from yolorep.errors import UsageError
from yolorep.stock_layers import rep_blocks

STRIP = '''"""A block with a layer that the plugin defines."""
import torch
from torch import nn
from yolorep.blocks import Scale, Site, register_block


class Gain(Scale):
    """A layer that checkpoints name."""


@register_block("strip")
def strip(site: Site, *, thick: int = 1) -> dict[str, nn.Module]:
    """A horizontal strip beside the dense convolution."""
    size = (thick, site.conv.kernel_size[1])
    return {} if site.pointwise else {"branch_horizontal": site.conv_bn(size, site.padding_of(size))}
'''
FAST = ["device=cpu", "workers=0", "imgsz=64", "batch=4", "plots=False"]
LOOK = """
import sys, torch, yolorep.blocks
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.stock_layers import rep_blocks
if sys.argv[2:]: make_runnable()
checkpoint = torch.load(sys.argv[1], weights_only=False)
model = checkpoint.get("ema") or checkpoint["model"]
print(sorted({model.get_submodule(name).block for name in rep_blocks(model)}))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "strips.py"
    file.write_text(STRIP)
    return file


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test loads."""
    before = dict(BLOCKS)
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "modules", sys.modules)
    yield
    for name in BLOCKS.keys() - before.keys():
        del BLOCKS[name]
    for name in ("strips", "broken"):
        sys.modules.pop(name, None)


def test_every_step_on_ultralytics(plugin: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Train, resume and deploy; the plugin's path is relative, and the last two run elsewhere."""
    weights = tmp_path / "run" / "weights"
    train = ["train", "model=yolov5n.yaml", "rep=strip(thick=3)", f"data={tiny_dataset}", "epochs=2", "save_period=1"]
    yolorep(*train, f"project={tmp_path}", "name=run", *FAST, f"plugin={plugin.name}", cwd=tmp_path)
    assert "['strip(thick=3)']" in run_python(LOOK, weights / "epoch0.pt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = yolorep("train", "resume=True", f"model={weights / 'epoch0.pt'}", cwd=elsewhere, code=2)
    assert "block 'strip(thick=3)' is unknown" in printed
    assert "plugin=FILE.py" in printed
    yolorep("train", "resume=True", f"model={weights / 'epoch0.pt'}", f"plugin={plugin}", cwd=elsewhere)
    assert "['strip(thick=3)']" in run_python(LOOK, weights / "last.pt")
    assert "blocks folded" in yolorep("deploy", weights / "last.pt", "out.pt", cwd=elsewhere)


@needs_package
def test_every_step_on_yolov5(plugin: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    options = [
        "--weights",
        "",
        "--data",
        tiny_dataset,
        "--epochs",
        "1",
        "--img",
        "64",
        "--batch",
        "4",
        "--workers",
        "0",
    ]
    options += ["--device", "cpu", "--noplots", "--noautoanchor", "--project", tmp_path, "--name", "run"]
    train = ["yolov5", "train.py", "--cfg", "yolov5n.yaml", "--rep", "strip", "--plugin", plugin]
    yolorep(*train, *options, cwd=tmp_path)
    assert "['strip']" in run_python(LOOK, tmp_path / "run" / "weights" / "last.pt", "yolov5")


def test_every_process_of_a_host(plugin: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    train = ["train", "model=yolov5n.yaml", "rep=strip", f"data={tiny_dataset}", "epochs=1", "nbs=4", "name=run"]
    fast = [option for option in FAST if not option.startswith("device")]
    _, models = launch(tmp_path, LAUNCH, *train, *fast, "device=0,1", f"project={tmp_path}", f"plugin={plugin}")
    blocks = [{model.get_submodule(name).block for name in rep_blocks(model)} for model in models]
    assert blocks == [{"strip"}, {"strip"}]


@pytest.mark.parametrize("command", [["blocks"], ["bench", "strip", "--rounds", "2"], ["models"]])
def test_a_command_takes_a_plugin(command: list[str], plugin: Path, tmp_path: Path) -> None:
    printed = yolorep(*command, "--plugin", plugin, cwd=tmp_path)
    assert "strip" in printed or command == ["models"]


def test_a_checkpoint_may_name_the_layers_of_a_plugin(plugin: Path, clean: None, tmp_path: Path) -> None:
    from yolorep.hosts import restricted_pickle

    plugins.use(plugin)
    file = tmp_path / "gain.pt"
    torch.save(sys.modules["strips"].Gain(4, 1.0), file)
    assert isinstance(restricted_pickle.load(file), nn.Module)


@pytest.mark.parametrize("command", [["predict"], ["deploy", "out.pt"], ["deploy", "out.pt", "--trust"]])
def test_a_class_that_only_a_checkpoint_names_is_sought_in_a_plugin(
    command: list[str], plugin: Path, clean: None, stock: nn.Module, tmp_path: Path
) -> None:
    """Never on an index, where a package of that name would be a stranger's."""
    plugins.use(plugin)
    elsewhere = tmp_path / "elsewhere"  # the plugin is not beside it
    elsewhere.mkdir()
    file = elsewhere / "gain.pt"
    stock.model[0].act = sys.modules["strips"].Gain(16, 1.0)
    torch.save({"model": stock}, file)
    os.environ[plugins.ENVIRONMENT] = ""
    given = f"model={file}" if command == ["predict"] else file
    printed = yolorep(command[0], given, *command[1:], cwd=elsewhere, code=2)
    assert "--plugin FILE.py" in printed
    assert "pip install" not in printed


def test_a_plugin_is_recorded_for_processes_that_follow(plugin: Path, clean: None) -> None:
    plugins.use(plugin)
    plugins.use(plugin)
    assert os.environ[plugins.ENVIRONMENT] == str(plugin.resolve())
    assert "strip" in BLOCKS
    assert run_python("from yolorep.blocks import BLOCKS; print('strip' in BLOCKS)") == "True\n"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("broken.py", "import nothing_of_that_name", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("broken.py", "def (", "cannot be loaded: SyntaxError"),
        ("broken.py", STRIP + "\n1 / 0", r"cannot be loaded: ZeroDivisionError: .* \(broken.py, line 17\)$"),
        (
            "broken.py",
            STRIP.replace('"strip"', '"my-strip"'),
            "cannot be loaded: BlockError: block 'my-strip' is no name",
        ),
        ("broken.py", STRIP.replace("int = 1", "int"), "option 'thick' has no default"),
        ("json.py", STRIP, "a module 'json' is imported already, of another file; rename the plugin"),
        ("strips.txt", STRIP, "is not a file; accepted: a Python file"),
        ("none.py", None, "is not a file; accepted: a Python file"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_sentence(
    name: str, text: str | None, says: str, clean: None, tmp_path: Path
) -> None:
    before = dict(BLOCKS)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says) as raised:
        plugins.use(tmp_path / name)
    assert str(raised.value).startswith(f"plugin={tmp_path / name}")
    assert before == BLOCKS
    assert os.environ[plugins.ENVIRONMENT] == ""


def test_a_plugin_without_a_block_is_told(clean: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(STRIP.replace('@register_block("strip")', ""))
    plugins.use(file)
    assert f"plugin={file} registers no block; a declaration of one stands under" in capsys.readouterr().err


def test_an_installed_package_registers_its_blocks(
    plugin: Path, clean: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that cannot be loaded is named; the others are loaded all the same."""
    monkeypatch.syspath_prepend(plugin.parent)
    points = [EntryPoint(name, name, plugins.GROUP) for name in ("nothing_of_that_name", "strips")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins.load_all()
    assert "strip" in BLOCKS
    assert "the blocks of nothing_of_that_name (yolorep.blocks) are left out" in capsys.readouterr().err
