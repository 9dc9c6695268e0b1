"""Segmentation and classification with YOLOv5: trained with branches by its own scripts, deployed, the same results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import run_python
from tests.hosts.scenes import write_scenes
from tests.hosts.yolov5_helpers import HOSTS, launch
from tests.processes import yolorep

SHORT = ["--img", "64", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--workers", "0", "--name", "run"]

# Deploys and verifies a checkpoint, after one epoch of which a segmenter is made to find something.
SHIP = """
import sys
from pathlib import Path
import torch
from rich.console import Console
from yolorep.commands.deploy import deploy_file
from yolorep.commands.verify import verify_files
from yolorep.hosts import checkpoints
trained, data, repo = map(Path, sys.argv[1:])
checkpoint = checkpoints.load(trained, repo)
model, head = checkpoint.model, checkpoint.model.model[-1]
for conv in getattr(head, "m", ()):
    conv.bias.data.view(head.na, -1)[:, 4:5 + head.nc] = 2
checkpoints.save(checkpoint, model, Path("sure.pt"))
sure, deployed, options = Path("sure.pt"), Path("deployed.pt"), {"repo": repo, "console": Console(width=200)}
deploy_file(sure, deployed, **options)
images = data.parent if data.is_file() else data
print("SAME", verify_files(sure, deployed, images=images, data=data, imgsz=64, **options))
"""


def ship(trained: Path, data: Path, host: Path, cwd: Path) -> list[str]:
    """Lines that deploying and verifying print."""
    return [" ".join(line.split()) for line in run_python(SHIP, trained, data, host, cwd=cwd).splitlines()]


@pytest.mark.parametrize("host", HOSTS)
def test_segmenter_is_trained_by_bare_name_and_deployed(host: Path, tmp_path: Path) -> None:
    if not (host / "segment" / "train.py").is_file():
        pytest.skip("a tree before v7.0, which has no segmentation")
    data = write_scenes(tmp_path / "data", "segment", train=4, val=2)
    options = ["--cfg", "yolov5n-seg-rep.yaml", "--weights", "", "--data", data, "--project", tmp_path]
    launch("--repo", host, "segment/train.py", *options, *SHORT, cwd=tmp_path)
    printed = ship(tmp_path / "run" / "weights" / "last.pt", data, host, tmp_path)
    assert any("28 blocks folded" in line for line in printed)
    assert printed[-1] == "SAME True"
    (found,) = (line for line in printed if "boxes on 6 images: 0 differ" in line)
    assert int(found.split()[0]) > 0
    assert "mask" in found
    names = [line.rpartition(" → ")[0].rpartition(" ")[0] for line in printed if " → 0" in line]
    assert names == ["mAP50", "mAP50-95", "mask mAP50", "mask mAP50-95"]


@pytest.mark.parametrize("host", HOSTS)
def test_classifier_is_trained_from_an_expanded_detector_and_deployed(host: Path, tmp_path: Path) -> None:
    """The script takes no YAML but a checkpoint, and keeps the branches of its backbone."""
    data = write_scenes(tmp_path / "data", "classify", train=4, val=2)
    save = (
        "import sys, torch; from pathlib import Path; from yolorep.hosts.yolov5.compat import tree_modules\n"
        "yolo = tree_modules(Path(sys.argv[1]), 'models.yolo')[0]\n"
        "torch.save({'model': yolo.Model(str(Path(yolo.__file__).parent / 'yolov5n.yaml')).eval()}, 'detector.pt')"
    )
    run_python(save, host, cwd=tmp_path)
    yolorep("expand", "detector.pt", "start.pt", "--repo", host, cwd=tmp_path)
    options = ["--model", "start.pt", "--data=data", "--project", tmp_path]
    launch("--repo", host, "classify/train.py", *options, *SHORT, cwd=tmp_path)
    printed = ship(tmp_path / "run" / "weights" / "last.pt", data, host, tmp_path)
    assert any("blocks folded" in line for line in printed)
    assert any("12 predictions on 12 images: 0 differ" in line for line in printed)
    assert [line.split()[0] for line in printed if " → " in line and "(+" in line] == ["top-1", "top-5"]
    assert printed[-1] == "SAME True"
