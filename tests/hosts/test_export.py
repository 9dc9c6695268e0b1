"""What leaves the house: exported files compute what the rep model did, and deployed checkpoints load restricted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import randomize_, relative_error, run_python, tensors
from yolorep import deploy, expand
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")
exporter = pytest.importorskip("ultralytics.engine.exporter")

FLOAT32 = 1e-4  # of a whole model: two orders of evaluation
# What a user does without yolorep, with nothing but known classes read from the file.
RESTRICTED = """
import sys, torch
from ultralytics import YOLO
print(type(YOLO(sys.argv[1]).predict(torch.zeros(1, 3, 64, 64), verbose=False)[0]).__name__)
assert "yolorep" not in sys.modules
"""
REFUSED = """
import sys, torch
from ultralytics import YOLO
try:
    YOLO(sys.argv[1])
except TypeError as error:
    print(error)
"""


@pytest.fixture
def rep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """ultralytics' `YOLO` around a trained rep model of a YAML, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def make(yaml: str) -> Any:
        yolo = ultralytics.YOLO(yaml)
        yolo.model = randomize_(expand(randomize_(yolo.model.eval()))).float()
        return yolo

    return make


def run_onnx(file: str, image: Tensor) -> list[Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(o) for o in session.run(None, {session.get_inputs()[0].name: image.numpy()})]


def run_torchscript(file: str, image: Tensor) -> list[Tensor]:
    return tensors(torch.jit.load(file)(image))


@pytest.mark.parametrize("yaml", ["yolo11n.yaml", "yolo11n-cls.yaml"])
@pytest.mark.parametrize(("form", "run"), [("onnx", run_onnx), ("torchscript", run_torchscript)])
@torch.no_grad()
def test_exported_file_computes_what_the_rep_model_did(rep: Callable, yaml: str, form: str, run: Callable) -> None:
    yolo, image = rep(yaml), torch.rand(1, 3, 64, 64)
    expected = tensors(yolo.model(image))[0]
    options = {"simplify": False} if form == "onnx" else {}  # what simplifies is not part of the test's environment
    file = yolo.export(format=form, imgsz=64, device="cpu", verbose=False, **options)
    assert relative_error(expected, run(file, image)[0]) < FLOAT32
    assert rep_blocks(yolo.model), "the model itself stays as it is trained"


@pytest.mark.parametrize("form", ["engine", "coreml", "ncnn", "openvino", "litert", "executorch", "mnn", "paddle"])
def test_converters_receive_a_folded_graph(rep: Callable, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's and CoreML's run on their own machines alone; what each is given is seen here."""
    received: list[nn.Module] = []

    def convert(self: Any, *args: Any, **kwargs: Any) -> str:
        received.append(self.model)
        return "file"

    method = f"export_{form}"
    if not hasattr(exporter.Exporter, method):
        pytest.skip(f"this ultralytics does not export to {form}")
    monkeypatch.setattr(exporter.Exporter, method, convert)
    rep("yolo11n-cls.yaml").export(format=form, imgsz=64, device="cpu", verbose=False)
    (model,) = received
    assert not any(isinstance(m, nn.BatchNorm2d) or type(m).__module__.startswith("yolorep") for m in model.modules())


def test_deployed_checkpoint_loads_restricted(rep: Callable, tmp_path: Path) -> None:
    yolo = rep("yolo11n.yaml")
    yolo.save("rep.pt")
    yolo.model = deploy(yolo.model)
    yolo.save("deployed.pt")
    restricted = {"ULTRALYTICS_SAFE_LOAD": "1"}
    assert run_python(RESTRICTED, tmp_path / "deployed.pt", cwd=tmp_path, **restricted).split()[-1] == "Results"
    refusal = run_python(REFUSED, tmp_path / "rep.pt", cwd=tmp_path, **restricted)
    assert "references types outside the supported Ultralytics checkpoint format" in refusal


def test_weights_of_a_deployed_model_load_alone(rep: Callable, tmp_path: Path) -> None:
    """A checkpoint of ultralytics is a pickled model; what torch reads with `weights_only` is a state dict."""
    yolo = rep("yolo11n-cls.yaml")
    deployed = deploy(yolo.model)
    torch.save(deployed.state_dict(), tmp_path / "weights.pt")
    stock = ultralytics.YOLO("yolo11n-cls.yaml").model.eval()
    stock.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    image = torch.rand(1, 3, 64, 64)
    for norm, other in zip(stock.modules(), deployed.modules(), strict=True):
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = other.eps
    assert relative_error(tensors(yolo.model(image))[0], tensors(stock(image))[0]) < FLOAT32
