import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers import ROOT, run_python
from tests.processes import LAUNCH, NO_NETWORK
from yolorep.demo import scenes, training
from yolorep.demo.run import claim
from yolorep.errors import UsageError

OFFLINE = """
import socket, sys
attempts = []
def refuse(*arguments, **options):
    attempts.append(arguments)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = refuse
"""
# A process that was started in the background of a script may ignore them, and so would its children.
HEED_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
DEMO = """
from yolorep.cli import main
sys.argv = ["yolorep", "demo", "--epochs", "1", "--images", "16"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert not attempts, attempts
"""
LOAD = """
sys.modules["yolorep"] = None  # importing it fails
from ultralytics import YOLO
model = YOLO(sys.argv[1])
print(type(model.model).__name__, len(model.predict(sys.argv[2], imgsz=160, verbose=False, save=False)))
"""
QUICK = {"OMP_NUM_THREADS": "1"}


def test_demo_leaves_its_files_below_its_folder_and_reaches_no_network(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()

    output = run_python(
        OFFLINE + DEMO, cwd=here, HOME=str(home), YOLO_CONFIG_DIR=str(home), MPLCONFIGDIR=str(tmp_path / "mpl"), **QUICK
    )

    out = here / "yolorep-demo"
    assert {"mAP50", "deployed", "yolorep-demo/shapes-deployed.pt:"} <= set(output.split())
    assert [path.name for path in here.iterdir()] == ["yolorep-demo"]
    assert not [path for path in home.rglob("*") if path.is_file()]
    left = {"data", "detections.png", "shapes-deployed.pt", "shapes-rep.pt", "summary.png", "train", "train.log"}
    assert {path.name for path in out.iterdir()} == left
    for picture in ("detections.png", "summary.png"):
        assert min(cv2.imread(str(out / picture)).shape[:2]) > 400
    image = out / "data" / "images" / "val" / "0000.png"
    assert run_python(OFFLINE + LOAD, out / "shapes-deployed.pt", image, **QUICK).split() == ["DetectionModel", "1"]


def test_demo_interrupted_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    program = f"{HEED_INTERRUPTS}\n{NO_NETWORK}{LAUNCH}"
    command = [sys.executable, "-c", program, "demo", "--images", "32", "--out", str(tmp_path / "out")]
    environment = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "train" / "args.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode, output
    assert "Traceback" not in output
    assert "interrupted" in output
    assert not list(tmp_path.iterdir())


def test_training_tells_every_step_and_every_epoch_once(tmp_path: Path) -> None:
    data = scenes.make(tmp_path / "data", train=20, val=4, side=64)
    told: dict[str, list] = {"begin": [], "step": [], "epoch": []}
    listeners = {name: lambda *what, name=name: told[name].append(what) for name in told}

    trained = training.train(data, tmp_path / "run", epochs=2, imgsz=64, **listeners)

    assert told["begin"] == [(4,)]
    assert len(told["step"]) == 4
    assert [epoch for (epoch,) in told["epoch"]] == trained.epochs
    assert len(trained.epochs) == 2
    assert trained.checkpoint.is_file()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="not an empty folder; accepted"):
            claim(taken)
    with pytest.raises(UsageError, match="cannot be made"):
        claim(tmp_path / "mine.txt" / "below")
    assert claim(tmp_path / "new" / "folder").is_dir()


def test_the_default_folder_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(claim(None)) for _ in range(3)] == ["yolorep-demo", "yolorep-demo-2", "yolorep-demo-3"]


def test_scenes_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        scenes.make(folder, train=3, val=2, side=64, seed=seed)
    contents = [{f.relative_to(d): f.read_bytes() for f in d.rglob("0*.*")} for d in folders]
    assert len(contents[0]) == 2 * (3 + 2)
    assert contents[0] == contents[1]
    assert all(contents[0][name] != contents[2][name] for name in contents[0])


def test_training_and_validation_images_differ(tmp_path: Path) -> None:
    scenes.make(tmp_path, train=4, val=4, side=64)
    images = [path.read_bytes() for path in tmp_path.rglob("*.png")]
    assert len(set(images)) == 8


def test_labels_are_valid_and_cover_every_class() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        image, boxes = scenes.scene(random, 160)
        assert image.shape == (160, 160, 3)
        assert image.dtype == np.uint8
        for box in boxes:
            label, *numbers = box.row(160).split()
            assert all(0 < float(number) < 1 for number in numbers)
            assert 0 <= box.x1 < box.x2 <= 160
            assert 0 <= box.y1 < box.y2 <= 160
            seen.add(int(label))
    assert seen == set(range(len(scenes.CLASSES)))


@pytest.mark.parametrize("name", scenes.CLASSES)
def test_a_box_is_that_of_the_pixels_painted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_texture", lambda random, height, width, contrast: np.ones((height, width, 3), "f4"))
    random = np.random.default_rng(1)
    canvas = np.zeros((160, 160, 3), np.float32)
    contours = scenes._placed(random, scenes.outline(name), 160)
    box = scenes._box(0, np.concatenate(contours))
    scenes._paint(random, canvas, contours, box)
    rows, columns = np.nonzero(canvas[..., 0] > 0.5)
    painted = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert np.allclose(painted, (box.x1, box.y1, box.x2, box.y2), atol=2)


def test_an_unseen_shape_is_made_visible() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        canvas = np.full((64, 64, 3), random.uniform(30, 225, 3), np.float32)
        contours = scenes._placed(random, scenes.outline("disc"), 64)
        box = scenes._box(0, np.concatenate(contours))
        before = canvas.copy()
        scenes._paint(random, canvas, contours, box)
        centre = int((box.y1 + box.y2) / 2), int((box.x1 + box.x2) / 2)
        assert np.abs(canvas[centre] - before[centre]).max() > 10
