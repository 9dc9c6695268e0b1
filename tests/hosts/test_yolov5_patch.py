from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import RECENT, needs_package, needs_trees, plain
from yolorep.errors import HostError
from yolorep.hosts.shipped import shipped
from yolorep.hosts.yolov5 import patch

BODY = "def parse_model(d, ch):\n    return nn.Sequential(*layers), sorted(save)\n\n\n"
MAIN = {
    "yolov5-v7.0": """if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg', type=str, default='yolov5s.yaml', help='model.yaml')
""",
    "yolov5-master": """if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg", type=str, default="yolov5s.yaml", help="model.yaml")
""",
}


def write_tree(folder: Path, shape: str, before: int = 0, newline: str = "\n") -> Path:
    """A tree whose `models/yolo.py` ends in that shape, after `before` lines of the owner's."""
    file = folder / "models" / "yolo.py"
    file.parent.mkdir(parents=True)
    text = "# mine\n" * before + BODY + MAIN[shape] + "    opt = parser.parse_args()\n"
    file.write_text(text, newline=newline)
    return file


def test_patching_ships_one_patch_for_each_shape() -> None:
    assert len(list(patch.shipped())) == len(MAIN)


@pytest.mark.parametrize("shape", MAIN)
@pytest.mark.parametrize("before", [0, 352, 1000])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_patching_adds_one_line_and_takes_it_out_again(tmp_path: Path, shape: str, before: int, newline: str) -> None:
    file = write_tree(tmp_path, shape, before, newline)
    file.chmod(0o640)
    stock = file.read_bytes()

    assert patch.run(tmp_path, check=True) == f"{tmp_path} is not patched"
    assert patch.run(tmp_path, revert=True) == f"{tmp_path} is not patched; nothing to do"
    assert file.read_bytes() == stock

    assert patch.run(tmp_path) == f"{tmp_path}: patched models/yolo.py"
    lines = file.read_bytes().decode().split(newline)
    place = next(i for i, line in enumerate(lines) if line.startswith("import yolorep"))
    assert lines[place + 1].startswith("if __name__ ==")
    assert newline.join(lines[:place] + lines[place + 1 :]).encode() == stock
    assert file.stat().st_mode & 0o777 == 0o640

    patched = file.read_bytes()
    assert patch.run(tmp_path, check=True) == f"{tmp_path} is patched"
    assert patch.run(tmp_path) == f"{tmp_path} is already patched; nothing to do"
    assert file.read_bytes() == patched

    assert patch.run(tmp_path, revert=True) == f"{tmp_path}: reverted models/yolo.py"
    assert file.read_bytes() == stock
    assert os.listdir(file.parent) == ["yolo.py"]


def test_patching_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"is not a YOLOv5 tree \(no models/yolo.py\)"):
        patch.run(tmp_path)
    file = write_tree(tmp_path, "yolov5-v7.0")
    file.write_text(file.read_text().replace("sorted(save)", "save"))
    with pytest.raises(HostError, match=r"no patch fits .*add the line 'import yolorep' above"):
        patch.run(tmp_path, check=True)


LINES = ["import yolorep", "import yolorep  # mine", "from yolorep import Conv_C3", "    import yolorep"]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("known", [True, False])
def test_patching_does_not_ask_for_a_line_that_is_there(line: str, known: bool, tmp_path: Path) -> None:
    """By the owner's hand, in a tree that a patch fits as in one that none fits."""
    file = write_tree(tmp_path, "yolov5-v7.0")
    text = file.read_text() if known else file.read_text().replace("sorted(save)", "save")
    file.write_text(f"try:\n{line}\nexcept ImportError: pass\n{text}" if line[0] == " " else f"{line}\n{text}")
    before = file.read_bytes()
    assert patch.run(tmp_path, check=True) == f"{tmp_path} is patched, by a line of its owner's"
    for revert in (False, True):
        says = f"{tmp_path} is patched, by a line of its owner's; nothing to do"
        assert patch.run(tmp_path, revert=revert) == says
    assert file.read_bytes() == before


def test_patching_leaves_the_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tree(tmp_path, "yolov5-master")
    stock = file.read_bytes()

    def fail(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yolorep.atomic_files.os.replace", fail)
    with pytest.raises(HostError, match="cannot be written: No space left on device"):
        patch.run(tmp_path)
    assert file.read_bytes() == stock
    assert os.listdir(file.parent) == ["yolo.py"]


@needs_package
def test_patching_makes_the_package_know_rep_models_by_itself(tmp_path: Path) -> None:
    installed = Path(find_spec("yolov5").origin).parent  # type: ignore[union-attr, arg-type]
    shutil.copytree(installed, tmp_path / "yolov5", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; from yolov5.models.yolo import Model; model = Model(sys.argv[1])\n"
        "from yolorep.stock_layers import rep_blocks; print(Model.__module__, len(rep_blocks(model)))"
    )
    patch.run(tmp_path / "yolov5")
    printed = run_python(code, shipped()["yolov5n-rep.yaml"], cwd=tmp_path)
    assert printed.split()[-1] != "0"


@needs_trees
@pytest.mark.parametrize("tree", RECENT)
def test_patching_makes_a_tree_train_rep_models_by_itself(tree: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns(".git", "__pycache__"))
    patch.run(copy)
    arguments = ["--weights", "", "--data", tiny_dataset, "--img", "64", "--epochs", "1", "--batch", "4"]
    arguments += ["--workers", "0", "--device", "cpu", "--noplots", "--noval"]
    printed = plain(copy / "train.py", "--cfg", shipped()["yolov5n-rep.yaml"], *arguments, cwd=tmp_path)
    assert "YOLOv5n-rep summary" in printed
    assert "1 epochs completed" in printed
