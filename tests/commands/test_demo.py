import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import ROOT, run_python
from tests.processes import LAUNCH, NO_NETWORK
from yolorep.bench.subjects import DEPLOYED, STOCK
from yolorep.bench.timing import Timing
from yolorep.demo import plan, run, scenes, training
from yolorep.demo.findings import Findings
from yolorep.demo.workspace import MARKER, Workspace
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
    left = {"data", "detections.png", "shapes-deployed.pt", "shapes-rep.pt", "summary.png", "train.log"}
    left |= {"report.html", "shapes-stock.pt", "train-rep", "train-stock"}
    assert {path.name for path in out.iterdir()} == left
    words = " ".join(output.split())
    assert "28 of 69 convolutions of YOLOv5n got branches" in words
    assert "1 epoch on 16 images for rep and for stock" in words
    assert " from now." in words
    assert all(f'src="{picture}"' in (out / "report.html").read_text() for picture in ("detections.png", "summary.png"))
    epochs = [(out / f"train-{name}" / "results.csv").read_text().count("\n") for name in ("rep", "stock")]
    assert epochs[0] == epochs[1] == 2  # the head, and one line per epoch
    for picture in ("detections.png", "summary.png"):
        assert min(cv2.imread(str(out / picture)).shape[:2]) > 400
    image = out / "data" / "images" / "val" / "0000.png"
    printed = run_python(OFFLINE + LOAD, out / "shapes-deployed.pt", image, **QUICK)
    assert printed.split()[-2:] == ["DetectionModel", "1"]


def test_demo_interrupted_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    program = f"{HEED_INTERRUPTS}\n{NO_NETWORK}{LAUNCH}"
    command = [sys.executable, "-c", program, "demo", "--images", "32", "--out", str(tmp_path / "out")]
    environment = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 200
    while not (tmp_path / "out" / "train-stock" / "args.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=200)[0]
    assert process.returncode, output
    assert "Traceback" not in output
    assert "interrupted" in output
    assert not list(tmp_path.iterdir())


def test_an_interrupt_removes_nothing_that_the_demo_did_not_make(tmp_path: Path) -> None:
    """`--out .` in an empty folder, into which the user then puts files: beside the demo's, and among them."""
    program = f"{HEED_INTERRUPTS}\n{NO_NETWORK}{LAUNCH}"
    command = [sys.executable, "-c", program, "demo", "--images", "32", "--out", "."]
    environment = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    process = subprocess.Popen(command, cwd=tmp_path, **options)  # type: ignore[call-overload]
    deadline = time.monotonic() + 200
    while not (tmp_path / "train-stock" / "args.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    mine = [tmp_path / "thesis.txt", tmp_path / "data" / "images" / "train" / "mine.png", tmp_path / "own" / "a.pt"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=200)[0]
    assert process.returncode, output
    assert "Traceback" not in output
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)
    assert all(file.read_text() == "mine" for file in mine)
    assert "thesis.txt is not the demo's, and stays" in output


# Files of more than a megabyte cannot be written, as on a disk that fills up while the checkpoint is saved.
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    program = f"{FULL_DISK}{NO_NETWORK}{LAUNCH}"
    command = [sys.executable, "-c", program, "demo", "--images", "16", "--epochs", "1", "--out", "out"]
    environment = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(tmp_path / "config")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "yolorep: out cannot be written to: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_killed_demo_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        space = Workspace.claim(tmp_path / "out")
        space.will_make([tmp_path / "out" / "data" / "0000.png"])
        (tmp_path / "out" / "data").mkdir()
        (tmp_path / "out" / "data" / "0000.png").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "out" / MARKER).exists()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        Workspace.claim(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assert Workspace.claim(tmp_path / "out").folder.is_dir()


def test_the_folder_of_a_running_demo_is_refused(tmp_path: Path) -> None:
    Workspace.claim(tmp_path / "out")
    with pytest.raises(UsageError, match="not an empty folder"):
        Workspace.claim(tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', '{"pid": 1, "started": 0}'])
def test_a_marker_that_no_demo_wrote_removes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError):
        Workspace.claim(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_marker_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    files = ["../mine.txt", str(tmp_path / "mine.txt")]
    record = {"pid": 2**22 + 1, "started": 0, "made_folder": False, "files": files, "trees": ["..", "../out"]}
    (out / MARKER).write_text(json.dumps(record))
    Workspace.claim(out)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    space = Workspace.claim(tmp_path / "out")
    (tmp_path / "out" / "summary.png").write_text("mine")
    with pytest.raises(UsageError, match=r"summary\.png appeared while the demo was running"):
        space.will_make([tmp_path / "out" / "summary.png"])
    assert space.remove() == [tmp_path / "out" / "summary.png"]


@pytest.mark.parametrize("step", [0.01, 0.3, 0.8])
def test_the_plan_fills_the_time_and_stays_within_it(step: float) -> None:
    fitted = plan.fit(step, 210)
    assert fitted.seconds <= 210
    largest = (fitted.epochs, fitted.images) == (plan.EPOCHS[1], plan.IMAGES[1])
    assert fitted.seconds > 180 or largest
    assert fitted.steps >= 160


def test_the_plan_of_a_slow_machine_says_how_long_it_takes() -> None:
    fitted = plan.fit(5.0, 210)
    assert (fitted.epochs, fitted.images) == (plan.EPOCHS[0], plan.IMAGES[0])
    assert fitted.seconds > 800
    quick = plan.shorter(fitted, 5.0, 210)
    assert quick is not None
    assert quick.seconds < 0.2 * fitted.seconds
    assert plan.shorter(plan.fit(0.3, 210), 0.3, 210) is None
    given = plan.fit(5.0, 210, epochs=1, images=16)
    assert (given.epochs, given.images, given.val) == (1, 16, 4)


def test_a_step_is_measured_on_the_models_in_turn() -> None:
    from yolorep.hosts.ultralytics.build import build

    seconds = training.step_seconds([build(training.REP), build(training.STOCK)], 32, "cpu")
    assert len(seconds) == 2
    assert all(0 < value < 60 for value in seconds)


def test_the_fastest_number_of_threads_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine threads that wait for each other make a step many times slower."""
    clock, before = [0.0], torch.get_num_threads()
    cost = {1: 1.0, 2: 0.6, 4: 3.0}
    monkeypatch.setattr(training, "available_cores", lambda: 4)
    monkeypatch.setattr(training, "use_threads", lambda threads: None)
    monkeypatch.setattr(training, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(
        torch.nn.Conv2d, "forward", lambda conv, x: clock.__setitem__(0, clock[0] + cost[torch.get_num_threads()])
    )
    try:
        assert training.choose_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_demo_and_ultralytics_use_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import torch_utils

    from yolorep.hosts.ultralytics import cpu_threads

    monkeypatch.setattr(torch_utils, "NUM_THREADS", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_threads.available_cores() == 3  # the user's own choice
    cpu_threads.use_all_cores()
    assert torch_utils.NUM_THREADS == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cpu_threads.available_cores() == len(os.sched_getaffinity(0))


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.best_device() == ("0" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.best_device() == "0"
    assert run._torch("0") == "cuda:0"


def test_training_tells_every_step_and_every_epoch_once(tmp_path: Path) -> None:
    data = scenes.make(tmp_path / "data", train=20, val=4, side=64)
    told: dict[str, list] = {"begin": [], "step": [], "epoch": []}
    listeners = {name: lambda *what, name=name: told[name].append(what) for name in told}

    trained = training.train(training.REP, data, tmp_path / "run", epochs=2, imgsz=64, **listeners)

    assert told["begin"] == [(4,)]
    assert len(told["step"]) == 4
    assert [epoch for (epoch,) in told["epoch"]] == trained.epochs
    assert len(trained.epochs) == 2
    assert trained.checkpoint.is_file()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="not an empty folder; accepted"):
            Workspace.claim(taken)
    with pytest.raises(UsageError, match="cannot be made"):
        Workspace.claim(tmp_path / "mine.txt" / "below")
    assert Workspace.claim(tmp_path / "new" / "folder").folder.is_dir()
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_default_folder_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(Workspace.claim(None).folder) for _ in range(3)] == ["yolorep-demo", "yolorep-demo-2", "yolorep-demo-3"]


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


def test_speeds_are_compared_within_a_round() -> None:
    """The same network twice, on a machine that slows down in the third round between the two."""
    timing = Timing(1, {DEPLOYED: [1.0, 1.0, 1.0, 2.0, 2.0], STOCK: [1.0, 1.0, 2.0, 2.0, 2.0]})
    found = SimpleNamespace(speed=SimpleNamespace(batch=3, timing=timing))
    assert Findings.fps.fget(found) == {DEPLOYED: 3.0, STOCK: 3.0}  # type: ignore[attr-defined]
