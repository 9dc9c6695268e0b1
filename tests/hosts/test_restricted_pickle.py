"""What a checkpoint file may name, and that nothing else is imported or run when it is read."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import run_python
from yolorep import Conv_C3
from yolorep.errors import CheckpointError
from yolorep.hosts.checkpoints import check_resumes
from yolorep.hosts.restricted_pickle import load, plain_values, trusting


class Calls:
    """Unpickles to what `function(*arguments)` returns."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Calls(os.system, "touch ran"), "posix.system"),
        (Calls(eval, "open('ran', 'w')"), "builtins.eval"),
        (Calls(exec, "open('ran', 'w')"), "builtins.exec"),
        (Calls(__import__, "os"), "builtins.__import__"),
        (Calls(np.memmap, "ran", "uint8", "w+", 0, (1,)), "numpy.memmap"),
        (Calls(torch.load, "other.pt"), "torch.serialization.load"),
        (Calls(torch.storage._load_from_bytes, b""), "torch.storage._load_from_bytes"),
        (Calls(torch.hub.load, "evil/repo", "model"), "torch.hub.load"),
        (Calls(getattr, nn.SiLU(), "__class__"), "getattr"),
        (Calls(getattr, nn.SiLU, "__init__"), "getattr"),
        (Calls(getattr, {}, "pop"), "getattr"),
    ],
)
def test_a_name_that_could_run_code_is_refused(
    call: Calls, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path / "evil.pt", {"model": call})
    with pytest.raises(CheckpointError, match=rf"evil.pt names {named}.*which is not a layer.*give --trust"):
        load(file)
    assert not Path("ran").exists()


def test_a_name_is_refused_before_its_module_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, torch; sys.path.insert(0, '.')\n"
        "open('side_effect.py', 'w').write('class Layer:\\n    pass\\nprint(\"IMPORTED\")')\n"
        "import side_effect\n"
        "torch.save({'model': side_effect.Layer()}, 'a.pt'); del sys.modules['side_effect']; print('WRITTEN')\n"
        "from yolorep.hosts.restricted_pickle import load\n"
        "try: load('a.pt')\n"
        "except Exception as error: print(error)\n"
    )
    printed = run_python(code, cwd=tmp_path)
    assert "IMPORTED" not in printed.partition("WRITTEN")[2]
    assert "side_effect.Layer" in printed


def test_what_the_hosts_store_is_read(tmp_path: Path) -> None:
    block = Conv_C3(8, 8)
    stored = nn.Sequential(block, nn.Conv2d(8, 8, 1))
    stored.detect = nn.Conv2d.forward  # type: ignore[assignment]  # as in YOLOv5's Segment head
    stored.forward = stored.eval  # type: ignore[method-assign]  # a method of its own, as `forward_fuse` is
    content = {
        "model": stored,
        "opt": argparse.Namespace(lr=0.1),
        "names": {0: "red"},
        "best": np.float64(0.5),
        "array": np.ones(3),
        "dtype": torch.float16,
        "path": tmp_path,
        "buffer": torch.ones(2, dtype=torch.bfloat16),
    }
    read = load(saved(tmp_path / "a.pt", content))
    assert read["opt"] == content["opt"]
    assert read["path"] == tmp_path
    assert read["array"].tolist() == [1, 1, 1]
    assert read["dtype"] is torch.float16
    assert read["model"].forward.__self__ is read["model"]
    assert read["model"].detect is nn.Conv2d.forward
    for key, value in stored.state_dict().items():
        assert torch.equal(value, read["model"].state_dict()[key])


def test_a_file_that_is_trusted_may_name_anything(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", {"model": Calls(os.path.join, "a", "b")})
    with trusting():
        assert load(file)["model"] == os.path.join("a", "b")
    with pytest.raises(CheckpointError):
        load(file)
    with trusting(False), pytest.raises(CheckpointError):
        load(file)


def test_plain_values_are_read_without_running_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "epoch": 3,
        "date": "today",
        "ema": None,
        "model": nn.Conv2d(1, 1, 1),
        "x": Calls(os.system, "touch ran"),
    }
    assert plain_values(saved(tmp_path / "a.pt", content)) == {"epoch": 3, "date": "today", "ema": None}
    assert not Path("ran").exists()
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        plain_values(tmp_path / "text.pt")


def test_only_a_run_that_was_interrupted_is_resumed(tmp_path: Path) -> None:
    model = pytest.importorskip("ultralytics.nn.modules").Conv(3, 3)  # a layer of a host
    check_resumes(saved(tmp_path / "last.pt", {"epoch": 0, "model": model}))
    for content in ({"epoch": -1, "model": model}, {"model": model}):
        with pytest.raises(CheckpointError, match=r"there is nothing to resume; accepted: the last.pt"):
            check_resumes(saved(tmp_path / "deployed.pt", content))


def test_rep_checkpoints_load_under_the_restriction_of_ultralytics(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", minversion="8.4.100")
    code = (
        "import torch, yolorep\n"
        "from ultralytics import YOLO\n"
        "for name in ('yolov5n-rep.yaml', 'yolov5s-rep-k33.yaml'):\n"
        "    YOLO(name).save('rep.pt')\n"
        "    print(type(YOLO('rep.pt').predict(torch.zeros(1, 3, 64, 64), verbose=False)[0]).__name__)\n"
    )
    printed = run_python(code, cwd=tmp_path, ULTRALYTICS_SAFE_LOAD="1")
    assert printed.split().count("Results") == 2


def test_a_layer_of_torchvision_loads_where_torchvision_is_not_imported(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", minversion="8.4.100")
    rows = "backbone: [[-1, 1, Conv_C3, [16, 3, 2, {se: true}]]]\nhead: [[-1, 1, Classify, [nc]]]\n"
    (tmp_path / "se.yaml").write_text(f"nc: 2\n{rows}")
    start = "import sys, yolorep\nfrom ultralytics import YOLO\n"
    run_python(start + "YOLO('se.yaml', task='classify').save('rep.pt')", cwd=tmp_path)
    load = start + "print('torchvision' in sys.modules, yolorep.show(YOLO('rep.pt')).layers[0].name)"
    assert run_python(load, cwd=tmp_path, fresh=True, ULTRALYTICS_SAFE_LOAD="1").split()[-2:] == ["False", "model.0"]


def test_pickles_protocols_meet_the_same_rule(tmp_path: Path) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        torch.save({"model": Calls(os.system, "touch ran")}, tmp_path / "a.pt", pickle_protocol=protocol)
        with pytest.raises(CheckpointError, match=r"names posix\.system"):
            load(tmp_path / "a.pt")
