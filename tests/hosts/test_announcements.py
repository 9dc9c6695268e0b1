"""Training and inference say once, in the host's log, what yolorep did; two runs can be told apart by their records."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.hosts.test_ultralytics_training import InterruptionError, train
from tests.hosts.yolov5_helpers import launch, needs_package
from tests.processes import run
from yolorep import Conv_C3, expand
from yolorep.cli import main
from yolorep.hosts.announcements import folded_line, training_lines
from yolorep.hosts.ultralytics import command, run_record
from yolorep.hosts.weight_transfer import transferred
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")
OPTIONS = {"rep": "repvgg", "identity": "auto", "select": ["model.4.*", 3], "start": None}
STOCK = """
import sys
from ultralytics.cfg import entrypoint
sys.argv[0] = "yolo"
entrypoint()
print("yolorep is imported:", "yolorep" in sys.modules)
"""


@contextmanager
def listening() -> Iterator[list[str]]:
    """What is logged by ultralytics about yolorep, one entry a record."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ultralytics")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        lines[:] = [line for line in lines if "yolorep" in line.partition(" ")[0]]


def save_stock(file: Path) -> None:
    yolo = ultralytics.YOLO("yolov5n.yaml")
    yolo.ckpt = {}
    yolo.save(file)


@pytest.fixture(scope="module")
def finetuned(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One epoch from a stock checkpoint with the four options: what was logged, recorded and written."""
    folder = tmp_path_factory.mktemp("finetuned")
    save_stock(folder / "stock.pt")
    model, logged = ultralytics.YOLO(folder / "stock.pt"), {}
    for event in ("on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start"):
        model.add_callback(event, lambda trainer, event=event: logged.update({event: dict(vars(trainer.args))}))
    given = {name: value for name, value in OPTIONS.items() if value is not None}
    with listening() as said:
        seen = train(model, tiny_dataset, folder, **given)
    return {**seen, "said": said, "logged": logged, "folder": seen["save"].parent}


def test_training_says_what_it_trains_and_how_to_deploy_it(finetuned: dict[str, Any]) -> None:
    weights, trains, costs, folds, files, command = finetuned["said"]
    counts = re.fullmatch(
        r"yolorep: the weights give (\d+) of (\d+) tensors; 61 are silent branches; (\d+) do .*", weights
    )
    assert counts is not None, weights
    assert int(counts[1]) + 61 + int(counts[3]) == int(counts[2])
    assert trains.startswith("yolorep: branches beside 8 of 69 convolutions (repvgg): model.3, model.4.cv1, ")
    assert trains.endswith(" ... model.4.m.1.cv2")
    assert costs.startswith("yolorep: the branches add ")
    assert "takes 1.35 to 1.67 times" in costs
    assert folds.startswith("yolorep: 8 blocks re-parameterized, largest error ")
    assert 0 < float(folds.split()[-1]) < 1e-5
    assert all(str(finetuned["save"] / name) in files for name in ("best.pt", "last.pt"))
    assert command.startswith("yolorep deploy ")


def test_the_command_that_training_ends_with_works(
    finetuned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", shlex.split(finetuned["said"][-1]))
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0
    assert "8 blocks folded" in " ".join(capsys.readouterr().out.split())


def test_loggers_and_args_yaml_have_the_options_and_checkpoints_do_not(finetuned: dict[str, Any]) -> None:
    for event in ("on_pretrain_routine_start", "on_pretrain_routine_end"):
        assert {name: finetuned["logged"][event].get(name, "missing") for name in OPTIONS} == OPTIONS
    assert OPTIONS.keys() & finetuned["logged"]["on_train_start"].keys() == set()
    text = (finetuned["folder"] / "args.yaml").read_text()
    comments = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")][1:]
    assert yaml.safe_load("\n".join(comments)) == OPTIONS
    assert OPTIONS.keys() & yaml.safe_load(text).keys() == set()
    content = torch.load(finetuned["save"] / "last.pt", weights_only=False)
    assert OPTIONS.keys() & content["train_args"].keys() == set()


def test_a_stock_yolo_takes_the_args_yaml(finetuned: dict[str, Any], tmp_path: Path) -> None:
    lines = (finetuned["folder"] / "args.yaml").read_text().splitlines(keepends=True)
    file = tmp_path / "args.yaml"  # without the key that ultralytics before 8.4 writes and then refuses
    file.write_text("".join(line for line in lines if not line.startswith("save_dir:")))
    printed = run(STOCK, f"cfg={file}", f"project={tmp_path}", "name=stock", cwd=tmp_path)
    assert "yolorep is imported: False" in printed
    content = torch.load(tmp_path / "stock" / "weights" / "last.pt", weights_only=False)
    assert rep_blocks(content["model"]) == []


def test_yolorep_takes_the_options_from_the_args_yaml(finetuned: dict[str, Any]) -> None:
    file = finetuned["folder"] / "args.yaml"
    assert run_record.read(file) == {name: value for name, value in OPTIONS.items() if value is not None}
    assert command.recorded_options(["train", f"cfg={file}"]) == run_record.read(file)
    assert command.recorded_options(["train", "cfg=none.yaml", "data=data.yaml"]) == {}


def test_a_run_that_would_replace_the_one_of_its_args_yaml_says_so(
    finetuned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "args.yaml"
    file.write_text(f"save_dir: {finetuned['folder']}\n")
    command._tell_replaced_run([f"cfg={file}"])
    told = capsys.readouterr().err
    assert f"{file} has save_dir: {finetuned['folder']}, so that this run replaces the one there; save_dir=" in told
    command._tell_replaced_run([f"cfg={file}", "save_dir=other"])
    command._tell_replaced_run(["cfg=none.yaml"])
    command._tell_replaced_run(["model=a.yaml"])
    assert not capsys.readouterr().err


def test_a_resumed_run_keeps_its_record(tiny_dataset: Path, tmp_path: Path) -> None:
    save_stock(tmp_path / "stock.pt")
    model, folder = ultralytics.YOLO(tmp_path / "stock.pt"), tmp_path / "train"

    def interrupt(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise InterruptionError

    model.add_callback("on_train_epoch_start", interrupt)
    with pytest.raises(InterruptionError):
        train(model, tiny_dataset, tmp_path, rep="repvgg", epochs=2)
    before = (folder / "args.yaml").read_text()
    with listening() as said:
        ultralytics.YOLO(folder / "weights" / "last.pt").train(resume=True)
    assert (folder / "args.yaml").read_text().count("# rep: ") == before.count("# rep: ") == 1
    assert sum("branches beside 48 of 69" in line for line in said) == 1


def test_a_stock_run_says_and_records_nothing(tiny_dataset: Path, tmp_path: Path) -> None:
    with listening() as said:
        seen = train(ultralytics.YOLO("yolov5n.yaml"), tiny_dataset, tmp_path)
    assert said == []
    assert "yolorep" not in (seen["save"].parent / "args.yaml").read_text()


def test_a_run_of_a_yaml_with_a_policy_records_it(tiny_dataset: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(Path(ultralytics.__file__).with_name("cfg").joinpath("models/v5/yolov5.yaml").read_text())
    (tmp_path / "yolov5n-own.yaml").write_text(yaml.safe_dump({**content, "rep": {"block": "acb", "select": [3]}}))
    seen = train(ultralytics.YOLO(tmp_path / "yolov5n-own.yaml"), tiny_dataset, tmp_path)
    text = (seen["save"].parent / "args.yaml").read_text()
    assert '# rep: "acb"\n' in text
    assert "# select: [3]\n" in text


def test_only_a_fused_model_is_called_fused(rep: nn.Module) -> None:
    every = expand(ultralytics.YOLO("yolov8n.yaml").model.eval(), select="*")
    assert not every.is_fused()
    with listening() as said:
        every.fuse()
    assert every.is_fused()
    assert [line.partition(",")[0] for line in said] == ["yolorep: 57 blocks re-parameterized"]
    with listening() as said:
        rep.fuse(verbose=False)
    assert said == []


def test_the_largest_error_is_that_of_the_fold(rep: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one block folded wrongly by a tenth, the line says so."""
    from yolorep import deployment

    right = deployment._restore_stock_

    def wrong(block: Any, conv: nn.Conv2d, norm: Any) -> None:
        conv.weight.data *= 1.1
        right(block, conv, norm)

    monkeypatch.setattr(deployment, "_restore_stock_", wrong)
    with listening() as said:
        rep.fuse()
    assert float(said[0].split()[-1]) > 0.01


def test_transfer_tells_missing_silent_and_unfitting_tensors() -> None:
    block = nn.Sequential(Conv_C3(4, 4))
    stock = {key: value for key, value in block.state_dict().items() if "branch" not in key}
    total = len(block.state_dict())
    silent = f"; the other {total - len(stock)} are silent branches"
    assert (
        transferred(stock, block.state_dict()) == f"yolorep: the weights give {len(stock)} of {total} tensors{silent}"
    )
    assert transferred(block.state_dict(), block.state_dict()).endswith(f" {total} of {total} tensors")
    block.load_state_dict(stock)  # silences the branches
    assert transferred(block.state_dict(), block.state_dict()).endswith(silent)
    assert transferred({"0.act.x": stock["0.bn.bias"]}, block.state_dict()).endswith(
        f"{total} do not fit and start fresh"
    )
    assert transferred(stock, stock) == ""


def test_a_block_that_was_not_measured_has_no_cost() -> None:
    lines = list(training_lines(nn.Sequential(Conv_C3(4, 4, block="mobileone(branches=2)"))))
    assert len(lines) == 2
    assert "step" not in lines[1]


def test_blocks_of_other_projects_are_counted() -> None:
    assert folded_line(0, 1, None) == "yolorep: 1 block re-parameterized, 1 of them of other projects"


@needs_package
def test_a_yolov5_tree_says_and_records_the_same(tiny_dataset: Path, coco_weights: Path, tmp_path: Path) -> None:
    small = ("--img", 64, "--batch-size", 4, "--epochs", 1, "--workers", 0, "--noplots")
    options = ("--rep", "repvgg", "--select", "[3]")
    model = ("--cfg", "yolov5n.yaml", "--weights", coco_weights)
    printed = launch("train.py", *model, *options, "--data", tiny_dataset, *small, "--project", "runs", cwd=tmp_path)
    said = [line for line in printed.splitlines() if line.startswith("yolorep")]
    assert [line.partition(",")[0][:38] for line in said] == [
        "yolorep: the weights give 342 of 361 t",
        "yolorep: branches beside 1 of 57 convo",
        "yolorep: the branches add 4",
        "yolorep: 1 block re-parameterized",
        "yolorep: the branches are in runs/exp/",
        "yolorep deploy runs/exp/weights/best.p",
    ]
    assert printed.strip().splitlines()[-1] == said[-1]
    recorded = yaml.safe_load((tmp_path / "runs" / "exp" / "opt.yaml").read_text())
    assert {name: recorded[name] for name in OPTIONS} == {**OPTIONS, "select": [3]}
