"""`yolorep deploy` of a checkpoint whose only rep blocks are the host's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers import randomize_
from yolorep import CheckpointError, convert
from yolorep.foreign import foreign_blocks
from yolorep.hosts import checkpoints


def test_deploy_folds_the_hosts_own_blocks(tmp_path: Path) -> None:
    from ultralytics import YOLO

    source, out, console = tmp_path / "rep.pt", tmp_path / "out.pt", Console(record=True)
    yolo = YOLO("yolov10s.yaml")
    randomize_(yolo.model)
    yolo.save(source)
    convert.deploy_file(source, out, console=console)
    assert "2 blocks folded" in console.export_text()
    assert foreign_blocks(checkpoints.load(out).model) == []
    with pytest.raises(CheckpointError, match="has no rep blocks"):
        convert.deploy_file(out, tmp_path / "again.pt", console=console)
