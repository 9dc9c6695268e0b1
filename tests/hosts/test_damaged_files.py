"""A checkpoint that a killed run has left half written is told in one sentence, on both hosts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.processes import yolorep
from yolorep.errors import CheckpointError
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.yolov5.network import GUARDS


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    file = tmp_path / "last.pt"
    torch.save({"epoch": 1, "ema": torch.zeros(10_000)}, file)
    return file


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content[: int(share * len(content))])
    attempt_download = GUARDS["utils.downloads"]["attempt_download"]  # of a tree, which calls it for every checkpoint
    for check in (check_whole, partial(attempt_download, None)):
        with pytest.raises(CheckpointError, match=r"last.pt is cut short.*accepted: a whole checkpoint"):
            check(whole)


def test_a_file_that_cannot_be_read_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", deny)  # no mode of a file keeps root from reading it
    with pytest.raises(CheckpointError, match=r"last.pt cannot be read: Permission denied"):
        check_whole(whole)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_file_is_left_to_the_host(whole: Path, legacy: bool) -> None:
    torch.save({"epoch": 1}, whole, _use_new_zipfile_serialization=not legacy)
    check_whole(whole)
    check_whole(whole.with_name("missing.pt"))


@pytest.mark.parametrize("arguments", [["model={}", "resume=True"], ["resume={}"]])
def test_resuming_from_half_a_checkpoint_is_one_sentence(whole: Path, arguments: list[str]) -> None:
    whole.write_bytes(whole.read_bytes()[:1000])
    printed = yolorep("train", *(a.format(whole) for a in arguments), cwd=whole.parent, code=2)
    assert printed.startswith(f"yolorep: {whole} is cut short")
    assert len(printed.splitlines()) == 1
