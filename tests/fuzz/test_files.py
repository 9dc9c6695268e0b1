"""Files with bytes flipped, inserted, deleted or cut off: a command ends well or in one sentence; files stay."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import bad_files
from tests.fuzz.profile import MANY
from yolorep import deploy
from yolorep.cli import main

pytest.importorskip("ultralytics")
# The file that is mutated → the commands that read it
COMMANDS = {
    "rep.pt": ["deploy rep.pt out.pt", "verify rep.pt rep.pt", "show rep.pt", "import-weights rep.pt rep.pt out.pt"],
    "plain.pt": ["expand plain.pt out.pt", "deploy plain.pt out.pt", "show plain.pt"],
    "y5-rep.pt": ["deploy y5-rep.pt out.pt", "show y5-rep.pt"],
    "m-good.yaml": ["show m-good.yaml", "bench m-good.yaml --rounds 2 --imgsz 32 --out bench"],
    "data.yaml": ["verify rep.pt rep.pt --data data.yaml --imgsz 32"],  # which names the images beside it
}
CASES = [(name, line) for name, lines in COMMANDS.items() for line in lines]
NUMBER = MANY or 3 * len(CASES)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    bad_files.make(folder)
    checkpoint = torch.load(folder / "rep.pt", weights_only=False)
    torch.save({**checkpoint, "model": deploy(checkpoint["model"])}, folder / "plain.pt")
    data = folder / "data.yaml"
    data.write_text(f"path: {folder / 'set'}\n{data.read_text()}")
    return folder


def mutated(content: bytes, choose: random.Random) -> bytes:
    """Change the content in one to four places."""
    data = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        place, length = choose.randrange(len(data) or 1), choose.choice([1, 1, 2, 8, 64])
        what = choose.choice(["flip", "flip", "insert", "delete", "cut", "zero"])
        if what == "flip":
            data[place : place + 1] = bytes([choose.randrange(256)])
        elif what == "insert":
            data[place:place] = choose.randbytes(length)
        elif what == "delete":
            del data[place : place + length]
        elif what == "cut":
            del data[place:]
        else:
            data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


@pytest.mark.parametrize("seed", range(NUMBER))
def test_a_mutated_file_is_one_sentence_or_read(
    seed: int,
    originals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    choose = random.Random(seed)
    name, line = CASES[seed % len(CASES)]
    if name.startswith("y5") and not (originals / name).is_file():
        pytest.skip("optional host: pip install 'yolorep[yolov5]'")
    for file in ("rep.pt", name):
        shutil.copy2(originals / file, tmp_path)
    target = tmp_path / name
    target.write_bytes(mutated(target.read_bytes(), choose))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["yolorep", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr()
    assert "Traceback" not in told.out + told.err
    written = ("out.pt", "bench")
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name not in written}
    assert after == before
    if ended.value.code not in (0, None, 1):  # 1: verify found a difference
        assert told.err.count("yolorep: ") >= 1
        assert not (tmp_path / "out.pt").exists()
