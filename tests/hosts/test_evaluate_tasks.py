"""Every task of ultralytics: a deployed checkpoint has the same results on images, and the task's own figures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import randomize_, sure_
from tests.hosts.scenes import NAMES, write_scenes
from yolorep import deploy, expand
from yolorep.hosts.evaluate import Evaluator, compare_images, evaluator, figures
from yolorep.hosts.predictions import TASKS
from yolorep.hosts.ultralytics.build import build

MAPS = ["mAP50", "mAP50-95"]


@dataclass(frozen=True)
class Case:
    """A model's YAML, the name of a head's layer that only this task has, and the figures of the task."""

    yaml: str
    task: str
    layer: str
    figures: list[str]


CASES = [
    Case("yolo11n.yaml", "detect", "cv2", MAPS),
    Case("yolo26n.yaml", "detect", "cv2", MAPS),
    Case("yolov8n-rtdetr.yaml", "detect", "dec_score_head", MAPS),  # no NMS
    Case("yolo11n-seg.yaml", "segment", "proto", [*MAPS, "mask mAP50", "mask mAP50-95"]),
    Case("yolo11n-pose.yaml", "pose", "cv4", [*MAPS, "pose mAP50", "pose mAP50-95"]),
    Case("yolo11n-obb.yaml", "obb", "cv4", MAPS),
    Case("yolo11n-cls.yaml", "classify", "linear", ["top-1", "top-5"]),
    Case("yolo26n-sem.yaml", "semantic", "", ["mIoU", "pixel accuracy"]),
    Case("yolo26n-depth.yaml", "depth", "", ["delta1", "absolute relative error", "RMSE", "SILog"]),
]


@dataclass(frozen=True)
class Made:
    """Checkpoints of one case: with its branches, deployed, and deployed with the task's own layer changed."""

    data: Path
    rep: Evaluator
    deployed: Evaluator
    changed: Evaluator


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    def made(case: Case) -> Made:
        folder = tmp_path_factory.mktemp("task")
        size = 128 if "rtdetr" in case.yaml else 64
        rep = sure_(randomize_(expand(model_of(case))))
        deployed = deploy(rep)
        changed = changed_(copy.deepcopy(deployed), case.layer)
        evaluators = []
        for name, model in (("rep", rep), ("deployed", deployed), ("changed", changed)):
            torch.save({"model": model, "train_args": {"task": case.task}}, folder / f"{name}.pt")
            evaluators.append(evaluator(folder / f"{name}.pt", imgsz=size))
        return Made(write_scenes(folder / "data", case.task, train=1, val=2, size=size), *evaluators)

    return made


def model_of(case: Case) -> nn.Module:
    from ultralytics.nn import tasks

    model: Any = build(case.yaml)
    yaml = {**model.yaml, "nc": len(NAMES)}
    if case.task == "pose":
        yaml["kpt_shape"] = [4, 3]
    model = getattr(tasks, type(model).__name__)(yaml, verbose=False).eval()
    model.names = dict(enumerate(NAMES))
    model.task = case.task
    return model


def changed_(model: nn.Module, layer: str) -> nn.Module:
    part = getattr(model.model[-1], layer) if layer else model.model[-1]  # type: ignore[index]
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(parameter.flip(0) / 10)
    return model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.yaml)
def test_deployed_gives_the_same_results_and_another_model_does_not(case: Case, make: Callable[[Case], Made]) -> None:
    made = make(case)
    images = made.data if made.data.is_dir() else made.data.parent
    same, other = compare_images(made.rep, made.deployed, images), compare_images(made.rep, made.changed, images)
    assert same.ok, same
    assert same.task is TASKS[case.task]
    assert same.found >= same.images >= 3
    assert not other.ok, other
    before, after = figures(made.rep, made.data), figures(made.deployed, made.data)
    assert list(before) == case.figures
    assert after == pytest.approx(before, rel=1e-4, abs=1e-4)
