"""A mistake on the command line is one sentence and its exit code; files stay as they are, and nothing is left behind.

`bad_inputs.tsv` is the table: the exit code, the command, a part of the sentence. The files that it names are made by
`bad_files`; LONG stands for a name that no file system takes.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.commands import bad_files
from yolorep.cli import main

TABLE = [line.split("\t") for line in (Path(__file__).parent / "bad_inputs.tsv").read_text().splitlines()]
Listing = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    bad_files.make(folder)
    return folder


def listing(folder: Path) -> Listing:
    """Size and time of every file; without the hosts' caches of labels, which any look at a data set leaves.

    Nor Python's own caches of the modules that are imported.
    """
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *(name for name in files if not name.endswith(".cache"))):
            told = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = (told.st_size, told.st_mtime_ns) if name in files else (0, 0)
    return found


def test_the_table_covers_every_command() -> None:
    assert len(TABLE) >= 300
    commands = "deploy expand verify bench compare quantize import-weights split patch demo train val predict export"
    scripts = [f"yolov5 {name}.py" for name in ("train", "val", "detect", "export")]
    for command in [*commands.split(), "track", "tune", "benchmark", "blocks", "models", *scripts]:
        assert any(line.startswith(command) for _, line, _ in TABLE), command


@pytest.mark.parametrize(("code", "line", "says"), TABLE, ids=[line[:100] for _, line, _ in TABLE])
def test_a_mistake_is_one_sentence(
    code: str,
    line: str,
    says: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "y5" in line or line.startswith("yolov5"):
        pytest.importorskip("yolov5", reason="optional host: pip install 'yolorep[yolov5]'")
    monkeypatch.chdir(place)
    before = listing(place)
    printed = _run(shlex.split(line), int(code), monkeypatch, capfd)
    sentence = [text for text in printed.err.splitlines() if text.strip()][-1:] if code == "2" else [printed.out]
    assert says in "".join(sentence).replace("❌", ""), printed
    assert "Traceback" not in printed.err + printed.out
    assert listing(place) == before


def _run(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> pytest.CaptureResult[str]:
    import ultralytics.cfg
    import ultralytics.utils

    monkeypatch.setattr("sys.argv", ["yolorep", *(word.replace("LONG", bad_files.LONG) for word in words)])
    monkeypatch.setattr(ultralytics.cfg, "ARGV", sys.argv)  # which keeps the list that it found when it was imported
    monkeypatch.setattr(ultralytics.cfg, "TESTS_RUNNING", False)  # runs go where a user's go, into this folder
    monkeypatch.setitem(ultralytics.utils.SETTINGS, "runs_dir", str(Path("runs").absolute()))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    return capfd.readouterr()
