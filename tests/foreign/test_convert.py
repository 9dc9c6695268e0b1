"""`yolorep deploy` of a checkpoint whose only rep blocks are the host's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import randomize_
from yolorep.cli import main
from yolorep.foreign import foreign_blocks
from yolorep.hosts import checkpoints


def test_deploy_folds_the_hosts_own_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultralytics import YOLO

    monkeypatch.chdir(tmp_path)
    yolo = YOLO("yolov10s.yaml")
    randomize_(yolo.model)
    yolo.save("rep.pt")
    assert main(["deploy", "rep.pt", "out.pt"]) == 0
    assert "2 blocks folded" in capsys.readouterr().out
    assert foreign_blocks(checkpoints.load(Path("out.pt")).model) == []
    assert main(["deploy", "out.pt", "again.pt"]) != 0
    assert "has no rep blocks" in capsys.readouterr().err
