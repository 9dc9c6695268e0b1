"""A rep model trains as a stock one does: each feature of ultralytics' training, on both, in few runs."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolorep import deploy
from yolorep.blocks import laws
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")

LAYERS = """
nc: 2
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, C2f, [8, True]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""
QUIET = {"workers": 0, "device": "cpu", "plots": False, "amp": False, "verbose": False, "imgsz": 64, "batch": 4}
MOVING = ("running_mean", "running_var", "num_batches_tracked")


def train(yolo: Any, data: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """The trainer after training, its model's state before and after, and the sizes of the images it saw."""
    seen: dict[str, Any] = {"sizes": set(), "events": []}

    def state(trainer: Any) -> dict[str, torch.Tensor]:
        model = getattr(trainer.model, "_orig_mod", trainer.model)
        return {key: value.detach().clone() for key, value in model.state_dict().items()}

    def begin(trainer: Any) -> None:
        seen.update(before=state(trainer), blocks=len(rep_blocks(trainer.model)))
        prepare = trainer.preprocess_batch

        def note(batch: Any) -> Any:
            batch = prepare(batch)
            seen["sizes"].add(batch["img"].shape[-1])
            return batch

        trainer.preprocess_batch = note

    yolo.add_callback("on_train_start", begin)
    yolo.add_callback("on_fit_epoch_end", lambda trainer: seen["events"].append(trainer.epoch))
    yolo.add_callback("on_train_end", lambda trainer: seen.update(after=state(trainer), trainer=trainer))
    yolo.train(data=str(data), project=str(folder), warmup_epochs=0, **QUIET, **options)
    return seen


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stock YAML of a few layers, and the same with a policy."""
    folder = tmp_path_factory.mktemp("yaml")
    paths = {name: folder / f"{name}.yaml" for name in ("stock", "rep")}
    paths["stock"].write_text(LAYERS)
    paths["rep"].write_text(f"rep: {{block: repvgg}}\n{LAYERS}")
    return paths


@pytest.fixture(scope="module")
def runs(models: dict[str, Path], tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Layers 0 and 1 frozen, several image sizes, images in memory, mosaic closed, AdamW on a cosine; in one step."""
    options = {"freeze": 2, "multi_scale": 0.5, "cache": "ram", "close_mosaic": 1, "optimizer": "AdamW", "cos_lr": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "pays", lambda x: True)
        folder = tmp_path_factory.mktemp("runs")
        options |= {"epochs": 4, "nbs": 8, "patience": 1, "save_period": 1, "seed": 1}
        return {
            name: train(ultralytics.YOLO(path), tiny_dataset, folder / name, **options) for name, path in models.items()
        }


def frozen(name: str) -> bool:
    return name.startswith(("model.0.", "model.1."))


@pytest.mark.parametrize("kind", ["stock", "rep"])
def test_frozen_layers_stay_as_they_were_branches_included(runs: dict[str, Any], kind: str) -> None:
    run = runs[kind]
    moved = {key for key, value in run["before"].items() if not torch.equal(value, run["after"][key])}
    assert [key for key in moved if frozen(key)] == []
    assert {key for key in run["before"] if key.endswith(MOVING) and not frozen(key)} <= moved
    fixed = {name for name, p in run["trainer"].model.named_parameters() if not p.requires_grad and ".dfl." not in name}
    assert fixed == {name for name, _ in run["trainer"].model.named_parameters() if frozen(name)}
    assert any(".branch_" in name for name in fixed) == (kind == "rep")


def test_a_rep_model_steps_stops_and_saves_as_a_stock_one(runs: dict[str, Any]) -> None:
    stock, rep = runs["stock"], runs["rep"]
    assert rep["blocks"] > stock["blocks"] == 0
    assert rep["sizes"] == stock["sizes"]
    assert len(rep["sizes"]) > 1
    for of in (
        lambda run: run["trainer"].ema.updates,
        lambda run: run["trainer"].accumulate,
        lambda run: run["events"],
        lambda run: sorted(path.name for path in run["trainer"].wdir.iterdir()),
        lambda run: (run["trainer"].save_dir / "results.csv").read_text().splitlines()[0],
    ):
        assert of(rep) == of(stock)


def test_branches_join_the_optimizers_groups_by_kind(runs: dict[str, Any]) -> None:
    """Convolutions decay, norms do not, biases are apart: the hosts tell them by type and name."""
    trainer = runs["rep"]["trainer"]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = {g["param_group"]: {names[id(p)] for p in g["params"]} for g in trainer.optimizer.param_groups}
    for name, module in trainer.model.named_modules():
        kind = "bn" if isinstance(module, nn.BatchNorm2d) else "weight"
        for key, _ in module.named_parameters(recurse=False):
            assert f"{name}.{key}" in groups["bias" if key == "bias" else kind]
    assert any(".branch_identity." in name for name in groups["bn"])


def test_averaged_weights_are_of_every_branch_and_are_what_is_saved(runs: dict[str, Any]) -> None:
    run = runs["rep"]
    averaged, saved = run["trainer"].ema.ema, ultralytics.YOLO(run["trainer"].last).model
    assert list(averaged.state_dict()) == list(run["after"])
    for key, value in averaged.state_dict().items():
        assert torch.equal(saved.state_dict()[key], value.half().to(saved.state_dict()[key].dtype)), key
    again = pickle.loads(pickle.dumps(copy.deepcopy(saved)))
    x = torch.rand(1, 3, 64, 64)
    outputs = [m.float().eval()(x)[0] for m in (saved, again, nn.DataParallel(saved), deploy(saved.float().eval()))]
    assert all(torch.allclose(outputs[0], output, rtol=1e-4, atol=1e-3) for output in outputs)


@pytest.fixture(scope="module")
def compiled(models: dict[str, Path], tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One epoch with compile=True, as a graph without a break; the compiler itself is left out."""

    def compile_whole(model: nn.Module, *_: Any, mode: Any = None, **__: Any) -> Any:
        return torch.compile(model, backend="eager", fullgraph=True) if mode else model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultralytics.engine.trainer.attempt_compile", compile_whole)
        patch.setattr("ultralytics.engine.validator.attempt_compile", compile_whole)
        options = {"compile": True, "epochs": 1, "nbs": 4, "optimizer": "MuSGD", "single_cls": True, "rect": True}
        return train(ultralytics.YOLO(models["rep"]), tiny_dataset, tmp_path_factory.mktemp("compiled"), **options)


def test_compiled_training_learns_in_every_branch(compiled: dict[str, Any]) -> None:
    still = [key for key, value in compiled["before"].items() if torch.equal(value, compiled["after"][key])]
    # Of the head, a scale at which no box is assigned learns nothing, in a stock model neither.
    assert [key for key in still if ".branch_" in key and not key.startswith("model.4.")] == []
    assert any(".branch_" in key for key in compiled["after"])
    assert len(rep_blocks(ultralytics.YOLO(compiled["trainer"].last).model)) == compiled["blocks"] > 0


def test_a_fused_rep_checkpoint_is_trained_after_the_hosts_own_warning(
    compiled: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo = ultralytics.YOLO(compiled["trainer"].last)
    yolo.fuse(verbose=False)
    model = type(yolo.model)(yolo.model.yaml, verbose=False)
    monkeypatch.setattr(logging.getLogger("ultralytics"), "propagate", True)
    model.load(yolo.model)
    assert "fused for inference; train from the unfused checkpoint" in caplog.text
    assert len(rep_blocks(model)) == compiled["blocks"]
