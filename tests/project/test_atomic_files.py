"""A file is the old one or the new one, whatever happens to its writer; nothing else stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from yolorep.atomic_files import SUFFIX, written_whole

# Writes half of the new content and waits to be killed.
KILLED = """
import sys, time
from pathlib import Path
from yolorep.atomic_files import written_whole
with written_whole(Path(sys.argv[1])) as file:
    file.write("half"); file.flush(); print("half", flush=True); time.sleep(600)
"""


def test_content_takes_the_place_of_the_old_with_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    file.chmod(0o640)
    with written_whole(file) as stream:
        stream.write("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(TypeError), written_whole(file) as stream:
        print("new", 1 + None, file=stream)  # type: ignore[operator]
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"), written_whole(file) as stream:
        stream.write("new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(FileExistsError), written_whole(file, overwrite=False) as stream:
        print("late", file.write_text("early"), file=stream)
    assert file.read_text() == "early"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_the_next_writer_clears_what_a_killed_one_left_and_nothing_of_one_at_work(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(file)]
    killed, at_work = (subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2))
    try:
        for process in (killed, at_work):
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert file.read_text() == "old"
        assert len(list(tmp_path.glob(f".*{SUFFIX}"))) == 2
        with written_whole(file) as stream:
            stream.write("new")
        assert file.read_text() == "new"
        assert len(list(tmp_path.glob(f".*{SUFFIX}"))) == 1
    finally:
        at_work.kill()
        at_work.wait()
        for process in (killed, at_work):
            assert process.stdout is not None
            process.stdout.close()


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a.txt")
    with written_whole(tmp_path / "link") as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"
