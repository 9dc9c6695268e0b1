"""The command line as a user meets it: what it lists, what it says of wrong input, that it stays off the network."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import yolorep as yolorep_package
from tests.helpers import run_python
from tests.processes import run, yolorep
from yolorep.cli import main
from yolorep.commands import pass_on
from yolorep.hosts import train_options

COMMANDS = [
    "track",
    "tune",
    "benchmark",
    "models",
    "train",
    "val",
    "predict",
    "export",
    "yolov5",
    "expand",
    "deploy",
    "import-weights",
    "split",
    "verify",
    "show",
    "bench",
    "blocks",
    "patch",
    "demo",
]


def test_help_lists_every_command(tmp_path: Path) -> None:
    printed = yolorep("--help", cwd=tmp_path)
    assert [c for c in COMMANDS if f" {c} " not in printed] == []
    assert "..." not in printed.partition("Commands:")[2]  # no summary is cut in the middle of a clause
    assert "Train with ultralytics: ARG=VALUE as for its own command." in printed
    assert "Time models and blocks with branches, deployed and stock\n" in printed


def test_version_and_help_import_no_torch(tmp_path: Path) -> None:
    """Torch alone takes seconds to import."""
    for arguments, says in ((["--version"], f"yolorep {yolorep_package.__version__}"), (["--help"], "Usage:")):
        code = f"import sys\nsys.argv[1:] = {arguments!r}\n"
        code += "from yolorep.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
        printed = run(code, cwd=tmp_path, fresh=True)
        assert says in printed
        assert printed.strip().endswith("False")


@pytest.mark.parametrize("command", ["deploy", "bench", "yolov5", "verify"])
def test_help_describes_each_argument(command: str, tmp_path: Path) -> None:
    """typer before 0.26 loses these texts under click 8.5."""
    printed = yolorep(command, "--help", cwd=tmp_path)
    says = {"deploy": "A checkpoint (.pt) of", "bench": "torchvision:MODEL", "yolov5": "Such as train.py"}
    says["verify"] = "One to judge, such as the deployed one."
    assert printed.count(says[command]) == 1


def test_help_of_train_has_the_options_of_yolorep_first(tmp_path: Path) -> None:
    printed = yolorep("train", "--help", cwd=tmp_path)
    assert 0 < printed.index("--offline") < printed.index("  identity=KIND") < printed.index("yolo TASK MODE ARGS")


def test_models_lists_what_is_shipped(tmp_path: Path) -> None:
    printed = yolorep("models", cwd=tmp_path)
    arrow = "\N{RIGHTWARDS ARROW}"
    sizes = f"28 x repvgg    9.91 {arrow}   9.15 M   25.6 {arrow}   24.0 G   68 ms  YOLOv5s with over-parameterized"
    assert f"yolov5s-rep.yaml                 {sizes}" in printed
    assert "repvgg-a0.yaml" in printed


def test_help_of_a_script_has_the_options_of_yolorep_first(tmp_path: Path) -> None:
    if find_spec("yolov5") is None:
        pytest.skip("optional host: pip install 'yolorep[yolov5]'")
    printed = yolorep("yolov5", "train.py", "--help", cwd=tmp_path)
    options = ["--rep BLOCK", "--identity KIND", "--select LAYERS", "--start START", "--equivalent-l2", "[--hyp HYP]"]
    places = [printed.index(option) for option in options]
    assert places == sorted(places)


@pytest.mark.parametrize("mode", [entry.mode for entry in pass_on.MODES])
def test_help_of_every_mode_begins_with_what_yolorep_adds(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("yolorep.hosts.ultralytics.command.print_help", lambda: print("HOST"))
    monkeypatch.setattr("sys.argv", ["yolorep", mode, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert printed.index(f"Example: yolorep {mode} ") < printed.index("HOST")
    assert all((f"  {option.name}=" in printed) == (mode == "train") for option in pass_on.OPTIONS)


def test_every_option_of_training_is_in_the_help() -> None:
    assert [option.name for option in pass_on.OPTIONS] == ["plugin", *train_options.NAMES]


def test_completion_names_the_commands(tmp_path: Path) -> None:
    asked = {"_YOLOREP_COMPLETE": "complete_bash", "COMP_WORDS": "yolorep mod", "COMP_CWORD": "1"}
    code = "import sys\nfrom yolorep.cli import main\nsys.argv[:] = ['yolorep']\nmain()"
    assert run(code, cwd=tmp_path, **asked).split() == ["models"]


def test_blocks_lists_blocks_and_identities(tmp_path: Path) -> None:
    printed = yolorep("blocks", cwd=tmp_path)
    assert "repvgg" in printed
    assert "auto, paper, conv, average, select, interpolate, none" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "model=none.pt", "data=data.yaml"], "none.pt does not exist and is not downloaded"),
        (["train", "model=yolov5q-rep.yaml", "data=data.yaml"], "'yolov5q-rep.yaml' does not exist"),
        (["train", "model=yolov5n-rep.yaml", "data=none.yaml", "device=cpu"], "'none.yaml' does not exist"),
        (["predict", "model=yolov5n-rep.yaml", "colour=red"], "'colour' is not a valid YOLO argument"),
    ],
)
def test_wrong_input_to_ultralytics_is_one_sentence(tmp_path: Path, arguments: list[str], says: str) -> None:
    printed = yolorep(*arguments, cwd=tmp_path, code=2)
    assert "Traceback" not in printed
    assert says in printed.strip().splitlines()[-1]


FAULTS = {
    "markup": "[/b][red].pt",
    "a loop of links": "loop.pt",
    "a folder": "folder.pt",
    "a name that is too long": "x" * 300 + ".pt",
    "a text": "text.pt",
    "a state dict": "state.pt",
}
READERS = {
    "deploy": ["{}", "out.pt"],
    "expand": ["{}", "out.pt"],
    "verify": ["{}", "{}"],
    "train": ["model={}", "data=data.yaml"],
    "predict": ["model={}"],
    "export": ["model={}"],
    "yolov5 detect.py": ["--weights", "{}"],
    "yolov5 train.py": ["--weights", "{}", "--data", "none.yaml"],
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_read_is_one_sentence(
    command: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And leaves nothing behind: arguments are checked before a folder for the run is made."""
    if command.startswith("yolov5") and find_spec("yolov5") is None:
        pytest.skip("optional host: pip install 'yolorep[yolov5]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    before = sorted(os.listdir(tmp_path))
    arguments = [argument.format(FAULTS[fault]) for argument in READERS[command]]
    monkeypatch.setattr("sys.argv", sys.argv[:])
    for holder in [sys, sys.modules.get("ultralytics.cfg")]:  # which keeps the list that it found when it was imported
        if holder is not None:
            name = "argv" if holder is sys else "ARGV"
            monkeypatch.setattr(holder, name, sys.argv)
    sys.argv[:] = ["yolorep", *command.split(), *arguments]
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("yolorep: ")]
    assert ended.value.code == 2, printed
    assert len(said) == 1
    assert "Traceback" not in printed.err + printed.out
    assert sorted(os.listdir(tmp_path)) == before


def test_whole_path_on_ultralytics_without_a_network(tiny_dataset: Path, tmp_path: Path) -> None:
    options = ["device=cpu", "workers=0", "imgsz=64", f"project={tmp_path}"]
    train = ["train", "model=yolov5n-rep.yaml", f"data={tiny_dataset}", "epochs=1", "batch=4", "name=rep", *options]
    yolorep(*train, cwd=tmp_path)
    best = tmp_path / "rep" / "weights" / "best.pt"
    assert "28 blocks folded" in yolorep("deploy", best, "deployed.pt", cwd=tmp_path)
    images = tiny_dataset.parent / "images" / "val"
    for model in (best, "deployed.pt"):
        yolorep("predict", f"model={model}", f"source={images}", "name=seen", *options, cwd=tmp_path)
        fused = yolorep("val", f"model={model}", f"data={tiny_dataset}", "name=valued", *options, cwd=tmp_path)
        assert "summary (fused): 84 layers, 2,503,334 parameters" in fused  # those of stock YOLOv5n
    yolorep("export", f"model={best}", "format=torchscript", *options, cwd=tmp_path)
    assert (best.parent / "best.torchscript").is_file()


def test_options_are_made_by_typer_alone() -> None:
    """What the classes in typer.core take differs between versions, and another one is installed at a user's."""
    code = """
import sys
import typer.core

built, original = set(), typer.core.TyperOption.__init__

def noted(option, *args, **kwargs):
    built.add(sys._getframe(1).f_globals["__name__"].partition(".")[0])
    original(option, *args, **kwargs)

typer.core.TyperOption.__init__ = noted
from yolorep.cli import app
print(bool(typer.main.get_command(app)), *built)
"""
    assert run_python(code).split() == ["True", "typer"]
