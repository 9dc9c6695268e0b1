"""`rep_from`: the model of a run is expanded in the middle, with its average, its optimizer and its learning rate."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import assert_same_outputs, randomize_, write_small
from tests.processes import yolorep
from yolorep import BlockError, YolorepError, expand
from yolorep.errors import UsageError
from yolorep.host import ULTRALYTICS, YOLOV5
from yolorep.hosts.late_expansion import carry_state_, expand_both_, restarted
from yolorep.hosts.shared_hooks import parse_planned
from yolorep.hosts.train_options import read, recorded_of
from yolorep.hosts.ultralytics import late
from yolorep.hosts.ultralytics.training_hooks import _as_asked
from yolorep.hosts.yolov5.training_hooks import take_options
from yolorep.late_request import LateRequest, begun
from yolorep.model_yaml import plan
from yolorep.policy import Policy
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")

QUIET = {"workers": 0, "device": "cpu", "plots": False, "amp": False, "verbose": False}
SHORT = {"imgsz": 32, "batch": 4, "nbs": 4, "epochs": 4, "optimizer": "SGD", "warmup_epochs": 0, "lr0": 0.02}
EPOCHS, FIRST = 4, 2
BLOCKS = 5  # that SELECT takes
SELECT = [1, "model.2.*"]


class InterruptionError(Exception):
    """A training that stops after an epoch, as when the machine goes down."""


def train(model: Any, data: Path, folder: Path, stop: int | None = None, **options: Any) -> dict[str, Any]:
    """Train on the CPU; what there was in each epoch. stop: the epoch after which the training is interrupted."""
    seen: dict[str, Any] = {name: {} for name in ("blocks", "average", "rates", "groups", "out", "momentum")}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def out(trainer: Any) -> list[Any]:
        with torch.no_grad():
            return [deepcopy(one).eval()(image)[0] for one in (trainer.model, trainer.ema.ema)]

    def on_train_epoch_start(trainer: Any) -> None:
        epoch = trainer.epoch
        seen["blocks"][epoch] = len(rep_blocks(trainer.model))
        seen["average"][epoch] = len(rep_blocks(trainer.ema.ema))
        seen["groups"][epoch] = [len(group["params"]) for group in trainer.optimizer.param_groups]
        weight = trainer.model.model[0].conv.weight
        seen["momentum"][epoch] = "momentum_buffer" in trainer.optimizer.state.get(weight, {})
        seen["out"][epoch, "start"] = out(trainer)

    def on_train_epoch_end(trainer: Any) -> None:
        seen["rates"][trainer.epoch] = trainer.optimizer.param_groups[0]["lr"]

    def on_fit_epoch_end(trainer: Any) -> None:
        seen["out"][trainer.epoch, "end"] = out(trainer)
        seen.update(save=trainer.wdir, trainer=trainer)
        if trainer.epoch == stop:
            raise InterruptionError

    for event in (on_train_epoch_start, on_train_epoch_end, on_fit_epoch_end):
        model.add_callback(event.__name__, event)
    try:
        model.train(data=str(data), project=str(folder), **{**QUIET, **SHORT, **options})
    except InterruptionError:
        seen["interrupted"] = True
    return seen


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model") / "small.yaml")


@pytest.fixture(scope="module")
def whole(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, small: Path) -> dict[str, Any]:
    """A run that is expanded in its middle, with the log of it."""
    lines: list[str] = []
    logger = ultralytics.utils.LOGGER
    handler = SimpleNamespace(level=0, handle=lambda record: lines.append(record.getMessage()))
    logger.addHandler(handler)
    try:
        folder = tmp_path_factory.mktemp("whole")
        seen = train(
            ultralytics.YOLO(small), tiny_dataset, folder, rep="repvgg", select=SELECT, rep_from=0.5, gain_lr=4
        )
    finally:
        logger.removeHandler(handler)
    return {**seen, "lines": [line for line in lines if line.startswith("yolorep: ")]}


def test_the_model_and_its_average_have_branches_from_the_epoch_on(whole: dict[str, Any]) -> None:
    assert whole["blocks"] == whole["average"] == {0: 0, 1: 0, 2: BLOCKS, 3: BLOCKS}
    yaml = whole["trainer"].ema.ema.yaml
    assert yaml["rep"] == {"block": "repvgg", "identity": "auto", "select": SELECT}
    for name in ("last.pt", "best.pt"):
        saved = ultralytics.YOLO(whole["save"] / name).model
        assert name == "best.pt" or len(rep_blocks(saved)) == BLOCKS


def test_the_average_follows_the_branches(whole: dict[str, Any]) -> None:
    for one in (whole["trainer"].model, whole["trainer"].ema.ema):
        gains = {name: value for name, value in one.state_dict().items() if ".branch_1x1.bn.weight" in name}
        assert gains
        assert all(bool(gain.any()) for gain in gains.values())


def test_the_expansion_keeps_both_functions(whole: dict[str, Any]) -> None:
    for before, after in zip(whole["out"][FIRST - 1, "end"], whole["out"][FIRST, "start"], strict=True):
        assert_same_outputs(before, after)


def test_the_learning_rate_starts_again(whole: dict[str, Any]) -> None:
    """ultralytics' straight line from lr0 to 0.01 lr0, of four epochs, and then of two."""
    line = [0.02 * (0.01 + 0.99 * (1 - share)) for share in (0, 0.25, 0, 0.5)]
    assert list(whole["rates"].values()) == pytest.approx(line)


def test_old_parameters_keep_their_momentum_and_new_ones_join_their_groups(whole: dict[str, Any]) -> None:
    assert whole["momentum"] == {0: False, 1: True, 2: True, 3: True}
    before, after = whole["groups"][FIRST - 1], whole["groups"][FIRST]
    gains = 2 * BLOCKS - 2  # of 1x1 and identity branches; two of the layers are 1x1 or change their shape
    assert len(after) == len(before) + 1  # gain_lr
    assert 0 < after[-1] <= gains + 2
    trainer = whole["trainer"]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trainer.model.parameters()} == held
    decayed = {id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        kernel = parameter.dim() > 1 and name.endswith("weight")
        assert (id(parameter) in decayed) == kernel, name


def test_the_table_of_the_epochs_has_a_column_for_the_rate_of_the_gains(whole: dict[str, Any]) -> None:
    """It is read for plots, and stored in checkpoints."""
    head, *rows = csv.reader((whole["save"].parent / "results.csv").read_text().splitlines())
    assert head[-1].strip() == "lr/pg3"
    assert [len(row) for row in rows] == [len(head)] * EPOCHS
    assert [float(row[-1]) for row in rows] == pytest.approx([0, 0, *(4 * whole["rates"][epoch] for epoch in (2, 3))])
    stored = torch.load(whole["save"] / "last.pt", weights_only=False)["train_results"]
    assert [len(column) for column in stored.values()] == [EPOCHS] * len(head)


def test_the_log_says_once_what_happened(whole: dict[str, Any]) -> None:
    said = [line for line in whole["lines"] if "epoch" in line]
    assert len(said) == 2
    assert said[0] == "yolorep: repvgg from epoch 3 of 4 on; stock until then"
    assert said[1].startswith(f"yolorep: epoch 3 of 4: {BLOCKS} convolutions have branches now, with ")
    assert said[1].endswith(" new parameters; the learning rate starts again, at 0.02")


@pytest.mark.parametrize("stop", [0, 2], ids=["before", "after"])
def test_a_resumed_run_goes_on_with_the_same_schedule(
    stop: int, whole: dict[str, Any], tiny_dataset: Path, tmp_path: Path, small: Path
) -> None:
    asked = {"rep": "repvgg", "select": SELECT, "rep_from": 0.5, "gain_lr": 4}
    first = train(ultralytics.YOLO(small), tiny_dataset, tmp_path, stop, **asked)
    assert first["interrupted"]
    again = train(ultralytics.YOLO(first["save"] / "last.pt"), tiny_dataset, tmp_path, resume=True)
    epochs = range(stop + 1, EPOCHS)
    assert again["rates"] == pytest.approx({epoch: whole["rates"][epoch] for epoch in epochs})
    assert again["blocks"] == again["average"] == {epoch: whole["blocks"][epoch] for epoch in epochs}
    assert again["groups"] == {epoch: whole["groups"][epoch] for epoch in epochs}


def test_last_is_written_again_so_that_nan_recovery_finds_the_branches(
    tiny_dataset: Path, tmp_path: Path, small: Path
) -> None:
    found: dict[str, Any] = {}
    model = ultralytics.YOLO(small)

    def look(trainer: Any) -> None:
        if trainer.epoch == 1:
            saved = torch.load(trainer.last, weights_only=False)
            found.update(epoch=saved["epoch"], blocks=len(rep_blocks(saved["ema"])))
            if hasattr(trainer, "_load_checkpoint_state"):  # the recovery, which fails where the groups differ
                trainer._load_checkpoint_state(saved)

    model.add_callback("on_train_epoch_start", look)
    train(model, tiny_dataset, tmp_path, rep="repvgg", select=SELECT, rep_from=0.5, epochs=2)
    assert found == {"epoch": 0, "blocks": BLOCKS}


def test_a_new_run_from_an_expanded_checkpoint_starts_no_rate_again(
    whole: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    seen = train(ultralytics.YOLO(whole["save"] / "last.pt"), tiny_dataset, tmp_path)
    assert list(seen["rates"].values()) == pytest.approx([0.02 * (0.01 + 0.99 * (1 - epoch / 4)) for epoch in range(4)])
    assert "rep_late" not in seen["trainer"].model.yaml
    assert set(seen["blocks"].values()) == {BLOCKS}


@pytest.mark.parametrize("interrupted", [False, True], ids=["whole", "resumed"])
@pytest.mark.parametrize(("fitness", "blocks"), [((0.1, 0.5, 0.2), BLOCKS), ((0.5, 0.1, 0.2), 0)], ids=str)
def test_the_best_checkpoint_has_branches_from_the_epoch_before_the_expansion_on(
    fitness: tuple[float, ...], blocks: int, interrupted: bool, tiny_dataset: Path, tmp_path: Path, small: Path
) -> None:
    """That epoch is written again, expanded. A run from a stock one trains a stock model, which can be resumed."""

    def on_train_epoch_end(trainer: Any) -> None:
        trainer.validate = partial(validate, trainer)

    def validate(trainer: Any) -> tuple[dict[str, float], float]:
        trainer.best_fitness = max(fitness[: trainer.epoch + 1])
        return {}, fitness[trainer.epoch]

    def judged(file: Path) -> Any:
        model = ultralytics.YOLO(file)
        model.add_callback("on_train_epoch_end", on_train_epoch_end)
        return model

    asked = {"rep": "repvgg", "select": SELECT, "rep_from": 0.5, "gain_lr": 4, "epochs": len(fitness)}
    seen = train(judged(small), tiny_dataset, tmp_path, 1 if interrupted else None, **asked)
    last, best = (seen["save"] / f"{name}.pt" for name in ("last", "best"))
    if interrupted:
        seen = train(judged(last), tiny_dataset, tmp_path, resume=True)
    assert seen["blocks"][2] == BLOCKS
    assert len(rep_blocks(ultralytics.YOLO(best).model)) == blocks
    further = train(ultralytics.YOLO(best), tiny_dataset, tmp_path, 0, epochs=2)
    assert further["blocks"] == {0: blocks}
    if not blocks:
        again = train(ultralytics.YOLO(further["save"] / "last.pt"), tiny_dataset, tmp_path, resume=True)
        assert again["blocks"] == {1: 0}
        assert not {"rep_late", "gain_lr", "rep"} & again["trainer"].model.yaml.keys()


def test_a_refused_run_leaves_no_request_behind(tiny_dataset: Path, tmp_path: Path, small: Path) -> None:
    model = ultralytics.YOLO(small)
    with pytest.raises(UsageError, match=r"^rep_from=0.5 of 1 epochs leaves no epoch"):
        train(model, tiny_dataset, tmp_path, rep="repvgg", rep_from=0.5, epochs=1)
    assert "rep_late" not in model.model.yaml


def test_constants_of_an_earlier_request_are_not_those_of_another(small: Path) -> None:
    given = {"rep_scales": {"file": "a.pt", "layers": {"model.1": [0.5] * 32}}, "gain_lr": 4}
    model = ultralytics.YOLO(small).model
    model.yaml = begun({**model.yaml, **given, "rep_late": {"block": "csla", "from": 0.5}})
    for expanded in (_as_asked(model, read({"rep": "csla", "select": [1]})), expand(model, "csla", select=1)):
        assert set(expanded.model[1].branch_1x1.scale.weight.tolist()) == {1}
        assert not {"rep_late", "rep_scales", "gain_lr"} & expanded.yaml.keys()
    assert _as_asked(model, read({"rep": "repvgg", "select": [1]})).yaml["rep"]["block"] == "repvgg"


def test_a_stock_checkpoint_needs_no_plugin_of_a_request_that_was_not_met(small: Path) -> None:
    yaml = {**json.loads(small.read_text()), "rep_late": {"block": "mine", "from": 0.5}}
    with pytest.raises(BlockError, match="block 'mine' is unknown"):
        plan(yaml, ULTRALYTICS)
    assert plan(begun(yaml), ULTRALYTICS).policy is None
    with pytest.raises(BlockError, match="block 'mine' is unknown"):
        LateRequest.of(begun(yaml))


@pytest.mark.parametrize("asked", [{"rep": "acb"}, {"rep": "repvgg"}, {"rep": "repvgg", "rep_from": 0.5}], ids=str)
def test_a_request_in_a_yaml_is_not_replaced_by_another(asked: dict[str, Any]) -> None:
    yaml = {"backbone": [], "head": [], **read({"rep": "repvgg", "rep_from": 0.66}).written({}, ULTRALYTICS)}
    assert read({"rep": "repvgg", "rep_from": 0.66}).written(yaml, ULTRALYTICS) == yaml
    with pytest.raises(UsageError, match=r"^the model has rep blocks already \(rep_late: .*'from': 0.66"):
        read(asked).written(yaml, ULTRALYTICS)


def test_what_is_dropped_of_an_earlier_request_is_said(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ultralytics.YOLO(small).model
    model.yaml = begun({**model.yaml, "gain_lr": 7, "rep_late": {"block": "csla", "from": 0.5}})
    expand(model)
    told = "yolorep: a request of an earlier run is dropped: rep_late, gain_lr; to repeat it"
    assert told in capfd.readouterr().err


@pytest.mark.parametrize("freeze", [2, [0, 1], None], ids=str)
def test_layers_are_frozen_in_versions_that_keep_their_names_to_themselves(freeze: Any) -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(freeze=freeze))
    assert late._frozen(trainer) == [*([] if freeze is None else ["model.0.", "model.1."]), ".dfl"]


@pytest.mark.parametrize("options", [{"rep": "repvgg", "start": "split"}, {"rep": "refconv"}, {"rep": "twin"}], ids=str)
def test_blocks_that_build_on_trained_kernels_are_made_in_the_middle(
    options: dict[str, Any], tiny_dataset: Path, tmp_path: Path, small: Path
) -> None:
    seen = train(ultralytics.YOLO(small), tiny_dataset, tmp_path, select=SELECT, rep_from=0.5, epochs=2, **options)
    assert seen["blocks"][1] > 0
    for before, after in zip(seen["out"][0, "end"], seen["out"][1, "start"], strict=True):
        assert_same_outputs(before, after)
    printed = yolorep("deploy", seen["save"] / "last.pt", tmp_path / "out.pt", cwd=tmp_path)
    assert f"{seen['blocks'][1]} blocks folded" in printed


def test_masks_begin_in_the_middle(tiny_dataset: Path, tmp_path: Path, small: Path) -> None:
    model = ultralytics.YOLO(small)
    hooks: list[int] = []
    model.add_callback(
        "on_train_epoch_start", lambda trainer: hooks.append(len(trainer.optimizer._optimizer_step_pre_hooks))
    )
    seen = train(model, tiny_dataset, tmp_path, rep="repopt", rep_from=0.5, epochs=2)
    assert hooks == [0, 1]
    assert seen["blocks"] == {0: 0, 1: 0}


def test_the_average_has_the_models_branches() -> None:
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    model = randomize_(nn.Sequential(conv.Conv(4, 8, 3), conv.Conv(8, 8, 3)))
    average = deepcopy(model).eval()
    for parameter in average.parameters():
        parameter.data.mul_(0.9)
    x = torch.randn(2, 4, 8, 8)
    expected = [deepcopy(model).eval()(x), average(x)]
    added = expand_both_(model, average, Policy("dbb"), None)
    assert added == sum(p.numel() for name, p in model.named_parameters() if "branch" in name)
    assert_same_outputs(expected, [deepcopy(model).eval()(x), average(x)])
    assert not any(p.requires_grad for p in average.parameters())
    assert not any(module.training for module in average.modules())
    ours, theirs = model.state_dict(), average.state_dict()
    assert [key for key in ours if "branch" in key]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "branch" in key)


def test_state_of_parameters_that_are_gone_is_left_behind() -> None:
    kept, gone, new = (nn.Parameter(torch.ones(2)) for _ in range(3))
    old = torch.optim.SGD([kept, gone], lr=0.1, momentum=0.9)
    for parameter in (kept, gone):
        parameter.grad = torch.ones(2)
    old.step()
    after = torch.optim.SGD([new, kept], lr=0.1, momentum=0.9)
    carry_state_(old, after)
    assert set(after.state) == {kept}
    assert after.state[kept]["momentum_buffer"] is old.state[kept]["momentum_buffer"]


def test_a_cosine_is_gone_through_once_more() -> None:
    from ultralytics.utils.torch_utils import one_cycle

    again, short = restarted(one_cycle(1, 0.1, 30), 22, 30), one_cycle(1, 0.1, 8)
    assert [again(epoch) for epoch in range(22, 31)] == pytest.approx([short(epoch) for epoch in range(9)])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "alone": ({"rep_from": 0.5}, "^rep_from says more about rep, which is not given; accepted: rep=BLOCK beside it$"),
    "zero": (
        {"rep": "dbb", "rep_from": 0},
        "^rep_from=0 is not accepted; accepted: a number above 0 and below 1, such",
    ),
    "one": ({"rep": "dbb", "rep_from": 1}, "^rep_from=1 is not accepted"),
    "true": ({"rep": "dbb", "rep_from": True}, "^rep_from=True is not accepted"),
    "text": ({"rep": "dbb", "rep_from": "late"}, "^rep_from='late' is not accepted"),
    "start": ({"rep": "dbb", "rep_from": 0.5, "start": "paper"}, "^start=paper changes what a trained model computes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_are_one_sentence(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(YolorepError, match=message):
        read(given)


def test_a_request_is_written_read_and_recorded() -> None:
    options = read({"rep": "acb", "select": 6, "rep_from": 0.66})
    written = options.written({"backbone": [], "head": []}, ULTRALYTICS)
    assert written["rep_late"] == {"block": "acb", "identity": "auto", "select": [6], "from": 0.66}
    assert "rep" not in written
    assert recorded_of(written) == options.recorded()
    assert recorded_of(written)["rep_from"] == 0.66
    assert LateRequest.of(written) == LateRequest(Policy("acb", select=(6,)), 0.66)


@pytest.mark.parametrize(("fraction", "epochs", "first"), [(0.66, 100, 66), (0.66, 3, 2), (0.5, 4, 2), (0.1, 3, 1)])
def test_the_first_epoch_is_the_next_whole_one(fraction: float, epochs: int, first: int) -> None:
    assert LateRequest(Policy(), fraction).first_epoch(epochs) == first


@pytest.mark.parametrize(("fraction", "epochs"), [(0.66, 1), (0.9, 2)])
def test_a_run_that_is_too_short_is_refused(fraction: float, epochs: int) -> None:
    with pytest.raises(UsageError, match=f"^rep_from={fraction} of {epochs} epochs leaves no epoch for the branches"):
        LateRequest(Policy(), fraction).first_epoch(epochs)


@pytest.mark.parametrize("given", [3, {"block": "acb"}, {"from": 0.5, "blocks": "acb"}], ids=str)
def test_a_yaml_with_a_wrong_request_is_refused(given: Any) -> None:
    with pytest.raises(BlockError, match=r"^rep_late: "):
        LateRequest.of({"rep_late": given})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "0,1"}, "this run has several devices; accepted: one device"),
        ({"compile": True}, "^rep_from does not go with compile=True; accepted: a run without compile$"),
        ({"time": 0.1}, "^rep_from does not go with time=0.1"),
        ({"distill_model": "x.pt"}, "^rep_from does not go with distill_model=x.pt"),
        ({"quantize": 8}, "^rep_from does not go with quantize=8"),
    ],
    ids=str,
)
def test_what_wraps_the_model_is_refused(options: dict[str, Any], says: str) -> None:
    model = nn.Identity()
    model.yaml = {"rep_late": {"block": "repvgg", "from": 0.5}}  # type: ignore[assignment]
    arguments = SimpleNamespace(**{"device": "cpu", "compile": False, "time": None, **options})
    trainer = SimpleNamespace(model=model, args=arguments, epochs=4, ema=None, resume=False)
    with pytest.raises(UsageError, match=says):
        late.check(trainer)


def test_a_short_run_leaves_no_folder(tiny_dataset: Path, tmp_path: Path) -> None:
    arguments = [f"{key}={value}" for key, value in {**QUIET, **SHORT, "epochs": 1, "data": tiny_dataset}.items()]
    printed = yolorep(
        "train", "model=yolov8n.yaml", "rep=repvgg", "rep_from=0.66", "project=runs", *arguments, cwd=tmp_path, code=2
    )
    assert "yolorep: rep_from=0.66 of 1 epochs leaves no epoch for the branches" in printed.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_yolov5_names_the_two_runs_instead() -> None:
    with pytest.raises(UsageError, match=r"^--rep-from is for `yolorep train`: .*; accepted: two runs, stock for the"):
        take_options("train.py", ["--rep", "repvgg", "--rep-from", "0.66"])
    with pytest.raises(YolorepError, match=r"^rep_late is for ultralytics; accepted: rep"):
        parse_planned(None, YOLOV5, {"rep_late": {"block": "repvgg", "from": 0.5}})
