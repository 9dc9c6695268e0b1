"""A RepVGG classifier of two classes from images to an exported file, as a user makes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.processes import run, yolorep

SIZE = 32
OPTIONS = ["device=cpu", "workers=0", f"imgsz={SIZE}"]
# Neither program may import yolorep; the second may import torch alone.
PREDICT = """
import json, sys
sys.modules["yolorep"] = None
from ultralytics import YOLO
model = YOLO(sys.argv[1])
result = model.predict(sys.argv[2], imgsz=32, device="cpu", verbose=False, save=False)[0]
print("ANSWER", json.dumps([model.task, result.names[result.probs.top1], result.probs.data.tolist()]))
"""
TORCHSCRIPT = """
import json, sys
import torch
x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
others = [name for name in ("yolorep", "ultralytics") if name in sys.modules]
print("ANSWER", json.dumps([torch.jit.load(sys.argv[1])(x[:1]).tolist(), others]))
"""


def answer(printed: str) -> Any:
    return json.loads(next(line for line in printed.splitlines() if line.startswith("ANSWER")).removeprefix("ANSWER"))


def write_classes(folder: Path, count: int = 10) -> Path:
    """Images of noise in which red or blue prevails."""
    random = np.random.default_rng(0)
    for name, channel in (("blue", 0), ("red", 2)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = random.integers(0, 120, (48, 40, 3), dtype=np.uint8)
            image[..., channel] += 130
            cv2.imwrite(str(folder / name / f"{index}.png"), image)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the split data in `data`, a rep checkpoint `best.pt` and its deployed form `deployed.pt`."""
    folder = tmp_path_factory.mktemp("classify")
    write_classes(folder / "images")
    assert "red: 8 train, 2 val" in yolorep("split", "images", "data", cwd=folder)
    train = ["train", "task=classify", "model=repvgg-a0.yaml", f"data={folder / 'data'}", "epochs=2", "batch=8"]
    train += ["optimizer=SGD", "lr0=0.02", "warmup_epochs=0", "plots=False", f"project={folder}", "name=run"]
    yolorep(*train, *OPTIONS, cwd=folder)
    (folder / "run" / "weights" / "last.pt").rename(folder / "best.pt")
    assert "22 blocks folded" in yolorep("deploy", "best.pt", "deployed.pt", cwd=folder)
    return folder


def test_training_keeps_the_network_and_takes_the_classes_of_the_data(trained: Path) -> None:
    from yolorep.hosts.checkpoints import load
    from yolorep.stock_layers import rep_blocks

    model = load(trained / "best.pt").model
    assert len(rep_blocks(model)) == 22
    assert model.names == {0: "blue", 1: "red"}
    assert tuple(model.model[-1].linear.weight.shape) == (2, 1280)
    assert not list(model.model[-1].conv.parameters())


def test_deployed_classifier_predicts_without_yolorep(trained: Path) -> None:
    image = next((trained / "data" / "val" / "red").iterdir())
    task, name, probabilities = answer(run(PREDICT, "deployed.pt", image, cwd=trained))
    assert task == "classify"
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    printed = yolorep("predict", "model=best.pt", f"source={image}", "save=False", *OPTIONS, cwd=trained)
    assert f"{name} {max(probabilities):.2f}" in printed


def test_folders_are_predicted_in_batches(trained: Path) -> None:
    source = trained / "data" / "train" / "blue"
    arguments = ["predict", "model=deployed.pt", f"source={source}", "batch=4", "save=False", *OPTIONS]
    printed = yolorep(*arguments, cwd=trained)
    assert printed.count("image ") >= 8
    assert f"(4, 3, {SIZE}, {SIZE})" in printed


def test_verify_compares_probabilities_and_accuracy(trained: Path) -> None:
    arguments = ["--images", "images", "--data", "data", "--imgsz", SIZE]
    printed = yolorep("verify", "best.pt", "deployed.pt", *arguments, cwd=trained)
    assert "20 predictions on 20 images: 0 differ" in " ".join(printed.split())
    assert re.search(r"top-1 +([01]\.\d+) → \1 \(\+0\.0e\+00\)", printed)


def test_verify_finds_a_changed_classifier(trained: Path) -> None:
    content = torch.load(trained / "deployed.pt", weights_only=False)
    content["model"].model[-1].linear.bias.data += torch.tensor([5.0, -5.0])
    torch.save(content, trained / "changed.pt")
    printed = yolorep("verify", "best.pt", "changed.pt", "--images", "images", "--imgsz", SIZE, cwd=trained, code=1)
    changed = float(re.search(r"largest difference of a pair:\s+probability\s+(\S+)", printed)[1])  # type: ignore[index]
    assert changed > 1e-3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("none", "none does not exist"),
        ("empty", "empty cannot be validated with: "),
        ("data/val/red", "data/val/red cannot be validated with: "),
    ],
)
def test_verify_says_which_folder_is_wrong(data: str, says: str, trained: Path) -> None:
    (trained / "empty").mkdir(exist_ok=True)
    printed = yolorep("verify", "best.pt", "deployed.pt", "--data", data, "--imgsz", SIZE, cwd=trained, code=2)
    assert "Traceback" not in printed
    told = printed.strip().splitlines()[-1]
    assert told.startswith(f"yolorep: {says}")
    assert "accepted: a folder with train and val" in told


def test_torchscript_runs_with_torch_alone(trained: Path) -> None:
    from yolorep.hosts.checkpoints import load

    yolorep("export", "model=best.pt", "format=torchscript", *OPTIONS, cwd=trained)
    got, others = answer(run(TORCHSCRIPT, "best.torchscript", cwd=trained, fresh=True))
    assert others == []
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load(trained / "best.pt").model(x[:1])[0]
    assert torch.allclose(torch.tensor(got), expected, atol=1e-5)
