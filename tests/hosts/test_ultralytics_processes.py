"""The script by which ultralytics starts several processes, as its versions before 8.4 and since write it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from yolorep.blocks import Conv_C3
from yolorep.errors import HostError
from yolorep.hosts.ultralytics import process_hooks

SCRIPT = """
overrides = {}

if __name__ == "__main__":
    trainer = Trainer()
    results = trainer.train()
"""


class Trainer:
    """What a script makes: before 8.4 with a model that is only named."""

    model: Any = "yolov5n.yaml"

    def train(self) -> Any:
        return self.model


def host(folder: Path, text: str = SCRIPT, state: object = None, *, attach: bool = True) -> Any:
    """A hooked `ultralytics.utils.dist` that writes `text`, and since 8.4 the trainer's state beside it."""
    dist: Any = ModuleType("ultralytics.utils.dist")

    def generate_ddp_file(trainer: Any) -> str:
        file = folder / "script.py"
        file.write_text(text)
        if state is not None:
            torch.save(state, file.with_suffix(".pt"))
        return str(file)

    dist.generate_ddp_file = generate_ddp_file
    dist.ddp_cleanup = lambda trainer, file: Path(file).unlink()
    if attach:
        process_hooks.attach(dist)
    return dist


def trained(file: str) -> Any:
    """The model that a process trains which runs the script."""
    return runpy.run_path(file, {"Trainer": Trainer}, "__main__")["results"]


@pytest.mark.parametrize("state", [None, "of the host"])
def test_processes_begin_with_the_hooks(tmp_path: Path, state: object) -> None:
    file = host(tmp_path, state=state).generate_ddp_file(SimpleNamespace(model="yolov5n-rep.yaml"))
    before, imported, _ = Path(file).read_text().partition("import yolorep\n")
    assert imported
    assert "overrides" not in before
    assert trained(file) == "yolov5n.yaml"  # left to the host


def test_processes_of_an_older_host_train_the_expanded_model(tmp_path: Path) -> None:
    dist = host(tmp_path)
    trainer = SimpleNamespace(model=nn.Sequential(Conv_C3(4, 4)))
    file = dist.generate_ddp_file(trainer)
    assert torch.equal(trained(file)[0].conv.weight, trainer.model[0].conv.weight)
    dist.ddp_cleanup(trainer, file)
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_that_is_imported_already_leaves_no_model_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist, engine = host(tmp_path, attach=False), ModuleType(process_hooks.TRAINER)
    before = engine.ddp_cleanup = dist.ddp_cleanup  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, engine.__name__, engine)
    hooks = process_hooks.attach(dist)
    trainer = SimpleNamespace(model=nn.Sequential(Conv_C3(4, 4)))
    engine.ddp_cleanup(trainer, dist.generate_ddp_file(trainer))
    assert list(tmp_path.iterdir()) == []
    hooks.remove()
    assert engine.ddp_cleanup is before


def test_a_script_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"has no trainer.train\(\); supported: ultralytics 8.2 to 8.4"):
        host(tmp_path, "launch()").generate_ddp_file(SimpleNamespace(model=nn.Sequential(Conv_C3(4, 4))))
    assert list(tmp_path.iterdir()) == []
