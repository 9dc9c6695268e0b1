"""The launcher, on a tree of a few lines that has what the launcher relies on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.yolov5_helpers import forget_trees, launch
from yolorep.errors import HostError
from yolorep.hosts.yolov5.launcher import run_script
from yolorep.hosts.yolov5.tree import find_tree

GENERAL = """
import os
from pathlib import Path
import yaml

def check_file(file, suffix=""):
    assert os.path.isfile(file), f"File not found: {file}"
    return file

def check_yaml(file, suffix=(".yaml",)):
    return check_file(file, suffix)

def check_dataset(data, autodownload=True):
    if isinstance(data, str):
        data = yaml.safe_load(open(data))
    path = Path(data.get("path") or Path(__file__).parents[1])
    if not (path / data["val"]).exists():
        raise Exception("Dataset not found")
    return {"val": str(path / data["val"]), "autodownload": autodownload}
"""
SCRIPT = """
import json, os, sys
import yolorep.hosts
from models.yolo import where
from utils.general import check_dataset, check_yaml

if __name__ == "__main__":
    print(json.dumps({
        "arguments": sys.argv[1:],
        "cwd": os.getcwd(),
        "cfg": check_yaml(sys.argv[sys.argv.index("--cfg") + 1]) if "--cfg" in sys.argv else None,
        "data": check_dataset(sys.argv[sys.argv.index("--data") + 1]) if "--data" in sys.argv else None,
        "models": where,
    }))
    sys.exit(3 if "--fail" in sys.argv else 0)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    files = {"models/yolo.py": "where = __file__", "models/common.py": "", "utils/general.py": GENERAL}
    files |= dict.fromkeys(("models/__init__.py", "utils/__init__.py", "utils/dataloaders.py"), "")
    for name, text in {**files, "train.py": SCRIPT, "segment/train.py": SCRIPT}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The user's own folder, with modules of the names that a tree's have."""
    folder = tmp_path / "elsewhere"
    for name in ("models", "utils"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('this is not the tree')")
    return folder


def report(printed: str) -> dict:
    return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("script", ["train.py", "segment/train.py"])
def test_launcher_runs_script_from_the_users_folder(tree: Path, elsewhere: Path, script: str) -> None:
    (tree / "segment" / "train.py").write_text(f"import sys\nsys.path.append({str(tree)!r})\n" + SCRIPT)
    found = report(launch("--repo", tree, script, "--img", "64", "--help", cwd=elsewhere))
    assert found["arguments"] == ["--img", "64", "--help"]
    assert Path(found["cwd"]) == elsewhere
    assert Path(found["models"]) == tree / "models" / "yolo.py"


def test_launcher_finds_tree_in_working_directory(tree: Path) -> None:
    assert Path(report(launch("train.py", cwd=tree))["models"]) == tree / "models" / "yolo.py"


def test_launcher_passes_exit_code_on(tree: Path, elsewhere: Path) -> None:
    launch("--repo", tree, "train.py", "--fail", cwd=elsewhere, code=3)


@pytest.mark.parametrize("name", ["yolov5n-rep.yaml", "yolov5s-repvgg.yaml"])
def test_launcher_finds_shipped_yaml_from_any_folder(tree: Path, elsewhere: Path, name: str) -> None:
    cfg = Path(report(launch("--repo", tree, "train.py", "--cfg", name, cwd=elsewhere))["cfg"])
    assert cfg.name == name
    assert cfg.is_file()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, "{data}/images/val"),  # the folders beside the file, not those of the tree
        ("{data}/inner", "{data}/inner/images/val"),
    ],
)
def test_launcher_reads_data_as_beside_its_file(
    tree: Path, elsewhere: Path, tmp_path: Path, path: str | None, expected: str
) -> None:
    data = tmp_path / "data"
    for folder in (tree, data, data / "inner"):
        (folder / "images" / "val").mkdir(parents=True)
    lines = [] if path is None else [f"path: {path.format(data=data)}"]
    (data / "data.yaml").write_text("\n".join([*lines, "train: images/val", "val: images/val", "names: {0: a}"]))
    found = report(launch("--repo", tree, "train.py", "--data", "../data/data.yaml", cwd=elsewhere))["data"]
    assert found == {"val": expected.format(data=data), "autodownload": False}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train.py", "--cfg", "nowhere.yaml"], "File not found: nowhere.yaml; accepted: a path"),
        (["train.py", "--data", "data.yaml"], "data.yaml: no images in"),
        (["train.py", "--data", "list.yaml"], "list.yaml is not a data YAML"),
        (["tune.py"], "has no script 'tune.py'; accepted: train.py, segment/train.py"),
        (["../outside.py"], "has no script '../outside.py'"),
        (["models"], "has no script 'models'"),
    ],
)
def test_launcher_says_what_is_wrong_in_one_sentence(
    tree: Path, elsewhere: Path, arguments: list[str], says: str
) -> None:
    (tree.parent / "outside.py").write_text("")
    (elsewhere / "data.yaml").write_text("train: missing\nval: missing\nnames: {0: a}\n")
    (elsewhere / "list.yaml").write_text("- train\n")
    printed = launch("--repo", tree, *arguments, cwd=elsewhere, code=2)
    assert says in printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("listed", "line"), [("# needs\nabsent_one>=1\n", "-r {tree}/requirements.txt"), ("absent\n", "absent_one")]
)
def test_a_missing_package_is_installed_with_what_the_tree_lists(
    tree: Path, listed: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_trees(monkeypatch)
    (tree / "train.py").write_text("import absent_one")
    (tree / "requirements.txt").write_text(listed)
    with pytest.raises(HostError) as error:
        run_script("train.py", [], tree)
    assert (
        str(error.value) == f"train.py needs absent_one, which is not installed: pip install {line.format(tree=tree)}"
    )


def test_launcher_refuses_what_is_not_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_trees(monkeypatch)
    (tmp_path / "train.py").write_text("")
    with pytest.raises(HostError, match=r"is not a YOLOv5 tree \(no models/yolo.py.*accepted: YOLOv5"):
        run_script("train.py", [], tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yolorep.hosts.yolov5.tree.find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"give --repo DIR, or pip install 'yolorep\[yolov5\]'"):
        find_tree()


def test_launcher_refuses_a_second_tree_in_one_process(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type(sys)("models")
    other.__path__ = ["/another/tree/models"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", other)
    before = sys.argv[:], sys.path[:]
    with pytest.raises(HostError, match="'models' is already imported from /another/tree; start a fresh process"):
        run_script("train.py", [], tree)
    assert (sys.argv, sys.path) == before


def test_launcher_is_what_torchrun_runs_again(tree: Path, elsewhere: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "yolorep", "yolov5", "--repo", str(tree), "train.py", "--img", "64"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count('"arguments": ["--img", "64"]') == 2
