"""`yolorep deploy` of checkpoints with rep blocks that are not yolorep's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.foreign.lookalikes import RepVGGBlock
from tests.helpers import randomize_
from yolorep import CheckpointError
from yolorep.commands import deploy as deploy_command
from yolorep.foreign import foreign_blocks
from yolorep.hosts import checkpoints
from yolorep.hosts.restricted_pickle import trusting


def save(yaml: str, path: Path, *, block: nn.Module | None = None) -> None:
    """Write a checkpoint of ultralytics, with `block` inside its second layer."""
    from ultralytics import YOLO

    yolo = YOLO(yaml)
    if block is not None:
        yolo.model.model[1].act = nn.Sequential(block, nn.SiLU())
    randomize_(yolo.model)
    yolo.save(path)


def test_deploy_folds_blocks_of_other_projects(tmp_path: Path) -> None:
    source, out, console = tmp_path / "rep.pt", tmp_path / "out.pt", Console(record=True)
    save("yolov8n.yaml", source, block=RepVGGBlock(32, 32))
    with pytest.raises(CheckpointError, match=r"names tests.foreign.lookalikes.RepVGGBlock, which is not .* --trust"):
        deploy_command.deploy_file(source, out, console=console)
    with trusting():
        deploy_command.deploy_file(source, out, console=console)
        assert foreign_blocks(checkpoints.load(out).model) == []
    assert "1 blocks folded" in console.export_text()
    with trusting(), pytest.raises(CheckpointError, match="has no rep blocks"):
        deploy_command.deploy_file(out, tmp_path / "again.pt", console=console)


@pytest.mark.parametrize(("module", "name"), [("yolov6.layers", "Conv"), ("models.yolo", "IDetect")])
def test_checkpoint_of_another_project_is_told(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its classes it cannot be read; the sentence says what can be done where they are."""
    package = module.partition(".")[0]
    for path in (package, module):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    kind = type(name, (nn.Module,), {"__module__": module})
    monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
    monkeypatch.setattr(sys.modules[package], module.partition(".")[2], sys.modules[module], raising=False)
    torch.save({"model": kind()}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint of YOLOv[67].*call yolorep.deploy\(model\)"):
        deploy_command.deploy_file(tmp_path / "theirs.pt", tmp_path / "out.pt", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == [tmp_path / "theirs.pt"]


def test_deploy_leaves_what_ultralytics_builds(tmp_path: Path) -> None:
    """Its own blocks are stock: a model of them alone has nothing to deploy."""
    source, out = tmp_path / "stock.pt", tmp_path / "out.pt"
    save("yolov10s.yaml", source)
    assert len(foreign_blocks(checkpoints.load(source).model)) == 2
    with pytest.raises(CheckpointError, match="deployed, or stock, already"):
        deploy_command.deploy_file(source, out, console=Console(quiet=True))
    assert not out.exists()
