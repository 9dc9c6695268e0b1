"""rep, identity, select and equivalent_l2 of a training, in both hosts: read, refused, and still there on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import launch, needs_package
from tests.processes import yolorep
from yolorep import BlockError, YolorepError, expand
from yolorep.errors import UsageError
from yolorep.host import ULTRALYTICS
from yolorep.hosts.train_options import TrainOptions, from_flags, from_pairs, read
from yolorep.hosts.ultralytics.command import run as run_ultralytics
from yolorep.hosts.yolov5.training_hooks import take_options
from yolorep.policy import Policy
from yolorep.stock_layers import rep_blocks

POLICY = Policy("mobileone(branches=6)", "none", select=("model.4.*", 6))
# as in Python, on ultralytics' command line and on a YOLOv5 script's
SPELLINGS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "block": ({"rep": "dbb"}, ["rep=dbb"], ["--rep", "dbb"]),
    "block-with-options": (
        {"rep": "mobileone(branches=6)", "identity": "none", "select": ["model.4.*", 6]},
        ["rep=mobileone(branches=6)", "identity=none", "select=[model.4.*, 6]"],
        ["--rep", "mobileone(branches=6)", "--identity=none", "--select", "['model.4.*', 6]"],
    ),
    "mapping": (
        {"rep": {"block": "dbb", "identity": "none"}, "select": 6},
        ["rep={block: dbb, identity: none}", "select=6"],
        ["--rep", "{block: dbb, identity: none}", "--select", "6"],
    ),
    "pattern": (
        {"rep": "dbb", "select": "*.cv2", "equivalent_l2": True},
        ["--rep=dbb", "select=*.cv2", "equivalent_l2=True"],
        ["--rep", "dbb", "--equivalent-l2", "--select", "*.cv2"],
    ),
    "decay-alone": ({"equivalent_l2": False}, ["equivalent_l2=false"], ["--equivalent_l2", "false"]),
    "gains": ({"rep": "dbb", "gain_lr": 10}, ["rep=dbb", "gain_lr=10"], ["--rep", "dbb", "--gain-lr", "10"]),
    "gains-alone": ({"gain_lr": 2.5}, ["gain_lr=2.5"], ["--gain_lr=2.5"]),
    "nothing": ({}, [], []),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_options_are_read_alike_on_every_command_line(case: str) -> None:
    given, pairs, flags = SPELLINGS[case]
    theirs = ["model=a.pt", "imgsz=[64, 64]", "plots"]
    assert from_pairs([*theirs[:1], *pairs, *theirs[1:]]) == (theirs, given)
    theirs = ["--weights", "", "--img", "64", "--rect", "--reps"]
    assert from_flags([*theirs[:2], *flags, *theirs[2:]]) == (theirs, given)


def test_options_become_the_policy_of_a_model() -> None:
    options = read(SPELLINGS["block-with-options"][0])
    assert options == TrainOptions(POLICY)
    written = options.written({"backbone": [], "head": []}, ULTRALYTICS)
    assert written["rep"] == {"block": "mobileone(branches=6)", "identity": "none", "select": ["model.4.*", 6]}
    assert not options.expands(written, ULTRALYTICS)  # the same again asks for nothing
    assert not read({"rep": None, "select": None})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "block": ({"rep": "repvggg"}, "^rep: block 'repvggg' is unknown; accepted: "),
    "identity": ({"rep": "dbb", "identity": "yes"}, "^rep: identity 'yes' is unknown"),
    "key": ({"rep": {"blocks": "dbb"}}, "^rep: unknown option 'blocks'; accepted: block, identity, select, start$"),
    "kind": ({"rep": ["dbb"]}, r"^rep: options must be a mapping, got \['dbb'\]"),
    "kind-beside": ({"rep": 4, "select": 4}, "^rep: options must be a mapping, got 4"),
    "select-alone": ({"select": 4}, "^select says more about rep, which is not given"),
    "twice": ({"rep": {"select": 4}, "select": 5}, "^select is given twice"),
    "gains": ({"gain_lr": 0}, "^gain_lr: 0 is not accepted; accepted: a positive number, such as 10$"),
    "gains-text": ({"gain_lr": "fast"}, "^gain_lr: 'fast' is not accepted"),
    "decay": ({"equivalent_l2": "yes"}, "^equivalent_l2: 'yes' is not accepted; accepted: true, false$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_one_sentence(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(YolorepError, match=message):
        read(given)


@pytest.mark.parametrize(("argument", "says"), [("rep", "no value"), ("rep=", "no value"), ("select=[*.cv2]", "quote")])
def test_wrong_values_are_one_sentence(argument: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        from_pairs([argument])


CONFLICTS = {
    "policy": ({"rep": {"block": "dbb"}}, r"^the model has rep blocks already \(rep: {'block': 'dbb'}\)"),
    "rows": ({"backbone": [[-1, 1, "C3Rep", [8]]]}, r"^the model has rep blocks already \(C3Rep rows\), so rep=repvgg"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_other_blocks_are_not_added_to_a_rep_model(case: str) -> None:
    given, message = CONFLICTS[case]
    with pytest.raises(UsageError, match=message):
        read({"rep": "repvgg"}).written(given, ULTRALYTICS)


def test_deployed_rows_may_be_expanded_again() -> None:
    rows = [[-1, 1, "C3Rep", [8, {"block": "plain", "k": [3, 3]}]], [-1, 1, "FC", ["nc"]]]
    assert read({"rep": "repvgg"}).written({"backbone": rows}, ULTRALYTICS)["rep"]["block"] == "repvgg"


# With ultralytics

QUIET = {"workers": 0, "device": "cpu", "plots": False, "amp": False, "verbose": False}
SHORT = {"imgsz": 32, "batch": 4, "nbs": 4, "epochs": 1, "optimizer": "SGD", "warmup_epochs": 0}


class InterruptionError(Exception):
    """A training that stops in its first epoch, as when the machine goes down."""


def train(model: Any, data: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Train on the CPU; the blocks and the state of the trainer's model at the start, and where it was saved."""
    seen: dict[str, Any] = {}

    def on_train_start(trainer: Any) -> None:
        state = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}
        seen.update(blocks=len(rep_blocks(trainer.model)), state=state, save=trainer.wdir, epoch=trainer.start_epoch)
        seen.update(hooks=len(trainer.optimizer._optimizer_step_pre_hooks))
        seen.update(groups=[len(group["params"]) for group in trainer.optimizer.param_groups])
        seen.update(rates=[group["initial_lr"] for group in trainer.optimizer.param_groups])
        if options.get("epochs") == 2 and not options.get("resume"):
            trainer.add_callback("on_model_save", _interrupt)

    model.add_callback("on_train_start", on_train_start)
    try:
        model.train(data=str(data), project=str(folder), **{**QUIET, **SHORT, **options})
    except InterruptionError:
        seen["interrupted"] = True
    return seen


def _interrupt(trainer: Any) -> None:
    raise InterruptionError


def load(path: str | Path) -> Any:
    return pytest.importorskip("ultralytics").YOLO(path)


@pytest.fixture(scope="module")
def stock_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint of 80 classes; the data set has 2."""
    file = tmp_path_factory.mktemp("stock") / "x8n.pt"
    load("yolov8n.yaml").save(file)
    return file


@pytest.fixture(scope="module")
def interrupted(stock_file: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A stock checkpoint, expanded and trained for one epoch of two."""
    folder = tmp_path_factory.mktemp("interrupted")
    return train(load(stock_file), tiny_dataset, folder, rep="repvgg", equivalent_l2=True, gain_lr=4, epochs=2)


def test_training_expands_a_stock_checkpoint(interrupted: dict[str, Any], stock_file: Path) -> None:
    """To what `expand` makes of it, which computes the same: the dense layers are the checkpoint's, branches silent."""
    stock = load(stock_file).model
    assert interrupted["interrupted"]
    assert interrupted["blocks"] == len(rep_blocks(expand(stock))) > 0
    state, before = interrupted["state"], stock.state_dict()
    same = [key for key in before if key in state and before[key].shape == state[key].shape]
    assert {key.rpartition(".")[0] for key in before.keys() - set(same)} == {f"model.22.cv3.{i}.2" for i in range(3)}
    assert all(torch.allclose(before[key].float(), state[key].float(), atol=1e-3) for key in same)
    gains = [value for key, value in state.items() if ".branch_" in key and key.endswith("bn.weight")]
    assert gains
    assert not any(gain.any() for gain in gains)


def test_repopt_trains_and_resumes_a_stock_model(stock_file: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """No layer of the checkpoint is yolorep's, and the optimizer has its mask again after a resume."""
    first = train(load(stock_file), tiny_dataset, tmp_path, rep="repopt(small=0.5)", epochs=2)
    assert first["blocks"] == 0
    assert first["hooks"] == 1
    last = first["save"] / "last.pt"
    kinds = {type(module).__module__ for module in load(last).model.modules()}
    assert not any(kind.startswith("yolorep") for kind in kinds)
    again = train(load(last), tiny_dataset, tmp_path, resume=True, epochs=2)
    assert (again["epoch"], again["hooks"]) == (1, 1)
    assert load(last).model.yaml["rep"]["block"] == "repopt(small=0.5)"


def test_repopt_from_a_yaml_starts_as_the_sum_of_its_kernels(tiny_dataset: Path, tmp_path: Path) -> None:
    stock, repopt = (
        train(load("yolov8n.yaml"), tiny_dataset, tmp_path / name, **options)["state"]
        for name, options in {"stock": {}, "repopt": {"rep": "repopt"}}.items()
    )
    assert stock.keys() == repopt.keys()
    key = "model.2.m.0.cv1.conv.weight"  # in = out: an identity was added
    middle = repopt[key][:, :, 1, 1].diagonal()
    assert middle.mean() > 0.7
    assert stock[key][:, :, 1, 1].diagonal().mean() < 0.3


def test_resume_needs_no_option_again(interrupted: dict[str, Any], tiny_dataset: Path, tmp_path: Path) -> None:
    last = interrupted["save"] / "last.pt"
    for again in ({"rep": "repvgg"}, {"equivalent_l2": False}):
        with pytest.raises(UsageError, match=f"resume goes on .* leave out {next(iter(again))}$"):
            load(last).train(resume=True, **again)
    seen = train(load(last), tiny_dataset, tmp_path, resume=True, epochs=2)
    assert (seen["blocks"], seen["epoch"], seen["groups"]) == (interrupted["blocks"], 1, interrupted["groups"])
    saved = load(last).model
    assert len(rep_blocks(saved)) == interrupted["blocks"]
    assert saved.yaml["rep"] == {"block": "repvgg", "identity": "auto"}
    assert saved.yaml["equivalent_l2"] is True
    assert saved.yaml["gain_lr"] == 4
    assert seen["rates"] == interrupted["rates"]
    assert max(seen["rates"]) == pytest.approx(4 * min(seen["rates"]))


def test_training_from_a_yaml_begins_with_fresh_branches(tiny_dataset: Path, tmp_path: Path) -> None:
    seen = train(load("yolov8n.yaml"), tiny_dataset, tmp_path, rep={"block": "repvgg", "select": [1, "model.2.*"]})
    gains = [value for key, value in seen["state"].items() if ".branch_" in key and key.endswith("bn.weight")]
    assert gains
    assert all(bool((gain == 1).all()) for gain in gains)
    saved = load(seen["save"] / "last.pt").model
    names = {name.split(".")[1] for name in rep_blocks(saved)}
    assert (seen["blocks"], names) == (len(rep_blocks(saved)), {"1", "2"})


def test_a_training_that_does_not_begin_leaves_the_model(stock_file: Path, tmp_path: Path) -> None:
    model = load(stock_file)
    before, keys = model.model, list(model.model.state_dict())
    for options, error in (
        ({"rep": "repvgg", "data": str(tmp_path / "none.yaml")}, RuntimeError),
        ({"rep": "repvgg", "select": "none.*"}, BlockError),
        ({"rep": "dbb", "equivalent_l2": True}, BlockError),
        ({"equivalent_l2": True}, BlockError),
        ({"gain_lr": 10}, BlockError),
        ({"rep": "repvgg", "start": "split"}, BlockError),
        ({"rep": "repvgg", "select": [*"ab"], "identity": "none"}, BlockError),
    ):
        with pytest.raises(error):
            model.train(project=str(tmp_path), **QUIET, **options)
        assert model.model is before
    assert list(before.state_dict()) == keys
    assert not {"rep", "equivalent_l2"} & before.yaml.keys()


def test_training_on_several_data_sets_leaves_the_model(stock_file: Path, tmp_path: Path) -> None:
    """ultralytics goes on to the next data set where one is wrong, and gives back the model it was given."""
    model = load(stock_file)
    model.add_callback("on_train_start", lambda trainer: None)  # so that it trains in this process
    before = model.model
    assert model.train(rep="repvgg", data=[str(tmp_path / "none.yaml")], project=str(tmp_path), **QUIET)
    assert model.model is before


def test_command_line_expands_trains_and_deploys(stock_file: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    common = {**QUIET, **SHORT, "data": tiny_dataset, "project": tmp_path, "name": "rep"}
    arguments = [f"{key}={value}" for key, value in common.items()]
    yolorep("train", f"model={stock_file}", "rep=repvgg", "select=[1, 'model.2.*']", *arguments, cwd=tmp_path)
    last = tmp_path / "rep" / "weights" / "last.pt"
    assert load(last).model.yaml["rep"]["select"] == [1, "model.2.*"]
    assert "5 blocks folded" in yolorep("deploy", last, "out.pt", cwd=tmp_path)


def test_command_line_says_that_the_checkpoint_is_missing(tmp_path: Path) -> None:
    printed = yolorep("train", "model=yolo11n.pt", "rep=repvgg", cwd=tmp_path, code=2)
    last = printed.splitlines()[-1]
    assert last == "yolorep: yolo11n.pt is not on disk, and is not downloaded offline (YOLO_OFFLINE is set)"
    assert "Traceback" not in printed


@pytest.mark.parametrize("mode", ["val", "predict", "export"])
def test_options_are_of_training_alone(mode: str) -> None:
    with pytest.raises(UsageError, match=f"^rep= is an option of train; {mode} takes a rep checkpoint as it is$"):
        run_ultralytics(mode, ["model=x.pt", "rep=dbb"])


def test_tune_says_where_its_blocks_come_from() -> None:
    with pytest.raises(
        UsageError, match=r"^tune trains a file .* takes no rep, select; accepted: .*`yolorep expand IN OUT`"
    ):
        load("yolo11n.yaml").tune(rep="repvgg", select=[4], data="none.yaml", iterations=1)


# With YOLOv5

TRAIN = ["train.py", "--img", "64", "--batch", "4", "--workers", "0", "--device", "cpu", "--noplots", "--noautoanchor"]
SHOW = """
import sys, torch
from yolorep.hosts.yolov5.compat import make_runnable
from yolorep.stock_layers import rep_blocks
make_runnable()
model = torch.load(sys.argv[1], weights_only=False)["model"]
print(len(rep_blocks(model)), model.nc, model.yaml["rep"], model.yaml["equivalent_l2"])
"""


@needs_package
def test_yolov5_expands_a_stock_checkpoint_and_resumes(coco_weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    asked = ["--rep", "repvgg", "--select", "[1, 'model.2.*']", "--equivalent-l2"]
    options = ["--weights", coco_weights, "--data", tiny_dataset, "--epochs", "2", "--save-period", "1"]
    printed = launch(*TRAIN, *asked, *options, "--project", "runs", "--name", "rep", cwd=tmp_path)
    assert "Transferred 343/" in printed  # 349 tensors of YOLOv5n but the head's three convolutions, of 2 classes
    weights = tmp_path / "runs" / "rep" / "weights"
    (weights / "last.pt").unlink()
    launch("train.py", "--resume", "runs/rep/weights/epoch0.pt", cwd=tmp_path)
    policy = {"block": "repvgg", "identity": "auto", "select": [1, "model.2.*"]}
    assert run_python(SHOW, weights / "last.pt").splitlines()[-1] == f"6 2 {policy} True"


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("val.py", ["--rep", "dbb"], "^val.py does not take --rep; accepted: train.py and segment/train.py; give any"),
        ("classify/train.py", ["--equivalent-l2"], "^classify/train.py does not take --equivalent_l2; accepted"),
        ("train.py", ["--resume", "--rep", "dbb"], "^--resume goes on with .*; leave out --rep$"),
    ],
)
def test_yolov5_options_out_of_place_are_one_sentence(script: str, arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        take_options(script, arguments)
