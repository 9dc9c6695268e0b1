"""The hosts' downloads with a network, without one, and offline; nothing is said in a traceback."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.commands import bad_files
from tests.helpers import run_python
from tests.hosts.stand_in_network import ABSENT, REDIRECTED, SILENT, served
from tests.hosts.yolov5_helpers import needs_package
from tests.processes import LAUNCH, NO_NETWORK, run
from yolorep.hosts.network_setting import font_file

ONLINE = {"YOLO_OFFLINE": "", "YOLO_AUTOINSTALL": "false", "YOLOv5_AUTOINSTALL": "false"}
OFFLINE = {"YOLO_OFFLINE": "1"}
# What the process finds, and what its environment says.
WITHOUT = {"no network": (ABSENT, ONLINE), "YOLO_OFFLINE=1": (NO_NETWORK, OFFLINE)}
SHORT = ["epochs=1", "batch=4", "imgsz=64", "device=cpu", "workers=0", "plots=False", "val=False"]
SHORT_YOLOV5 = ["--epochs", "1", "--batch", "4", "--img", "64", "--device", "cpu", "--workers", "0", "--noplots"]


def model_name() -> str:
    """A model that the installed ultralytics downloads."""
    pytest.importorskip("ultralytics")
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    return "yolo11n" if "yolo11n.pt" in GITHUB_ASSETS_NAMES else "yolov8n"  # before 8.3


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint of ultralytics, and a font: what its users' first training downloads."""
    name = model_name()
    from ultralytics.nn.tasks import DetectionModel

    file = io.BytesIO()
    model = DetectionModel(f"{name}.yaml", verbose=False)
    torch.save({"model": model.half(), "train_args": {"task": "detect"}, "epoch": -1}, file)
    return {f"{name}.pt": file.getvalue(), "Arial.ttf": font_file().read_bytes()}


@pytest.fixture(scope="session")
def yolov5_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint of the published package, and a font."""
    folder = tmp_path_factory.mktemp("release")
    code = (
        "import torch\n"
        "from pathlib import Path\n"
        "from yolorep.hosts.yolov5.compat import tree_modules\n"
        "yolo, = tree_modules(None, 'models.yolo')\n"
        "model = yolo.Model(Path(yolo.__file__).with_name('yolov5n.yaml'))\n"
        "torch.save({'model': model, 'ema': None, 'epoch': -1}, 'yolov5s.pt')\n"
    )
    run_python(code, cwd=folder)
    return {"yolov5s.pt": (folder / "yolov5s.pt").read_bytes(), "Arial.ttf": font_file().read_bytes()}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, str]:
    """Settings folders of the hosts that are empty, without a font."""
    for name in ("ultralytics", "yolov5"):
        (tmp_path / name).mkdir()
    return {"YOLO_CONFIG_DIR": str(tmp_path / "ultralytics"), "YOLOV5_CONFIG_DIR": str(tmp_path / "yolov5")}


def test_ultralytics_downloads_the_model_as_without_yolorep(
    weights: dict[str, bytes], tiny_dataset: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    model = f"{model_name()}.pt"
    train = ["train", f"model={model}", f"data={tiny_dataset}", "rep=repvgg", f"project={tmp_path}", "name=r", *SHORT]
    with served(weights) as (port, asked):
        environment = {**ONLINE, **config, "STAND_IN_PORT": str(port)}
        printed = run(REDIRECTED + LAUNCH, *train, cwd=tmp_path, **environment)
    assert "Traceback" not in printed
    assert (tmp_path / model).read_bytes() == weights[model]
    assert (tmp_path / "r" / "weights" / "last.pt").is_file()
    assert any(url.endswith(f"/{model}") and url.startswith("github.com/ultralytics/assets/") for url in asked)


@pytest.mark.parametrize("network", WITHOUT)
def test_ultralytics_without_the_model_or_a_network_says_so(
    network: str, tiny_dataset: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    python, environment = WITHOUT[network]
    model = f"{model_name()}.pt"
    train = ["train", f"model={model}", f"data={tiny_dataset}", *SHORT]
    printed = run(python + LAUNCH, *train, cwd=tmp_path, code=2, **config, **environment)
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert f"{model} is not on disk, and is not downloaded" in last
    assert ("YOLO_OFFLINE is set" if network == "YOLO_OFFLINE=1" else "github.com cannot be reached") in last


def test_offline_is_an_option_too(tmp_path: Path, config: dict[str, str]) -> None:
    train = ["train", "--offline", f"model={model_name()}.pt", "data=coco8.yaml"]
    printed = run(NO_NETWORK + LAUNCH, *train, cwd=tmp_path, code=2, **config, **ONLINE)
    assert "YOLO_OFFLINE is set" in printed


@needs_package
def test_yolov5_downloads_the_weights_as_without_yolorep(
    yolov5_weights: dict[str, bytes], tiny_dataset: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    train = ["train.py", "--weights", "yolov5s.pt", "--data", tiny_dataset, "--project", tmp_path, "--name", "r"]
    with served(yolov5_weights) as (port, asked):
        environment = {**ONLINE, **config, "STAND_IN_PORT": str(port)}
        printed = run(REDIRECTED + LAUNCH, "yolov5", *train, *SHORT_YOLOV5, cwd=tmp_path, **environment)
    assert "Traceback" not in printed
    assert (tmp_path / "yolov5s.pt").read_bytes() == yolov5_weights["yolov5s.pt"]
    assert (tmp_path / "r" / "weights" / "last.pt").is_file()
    assert any("github.com/ultralytics/yolov5/releases/download/" in url for url in asked)


@needs_package
@pytest.mark.parametrize("network", WITHOUT)
def test_yolov5_without_the_weights_or_a_network_says_so(
    network: str, tiny_dataset: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    python, environment = WITHOUT[network]
    train = ["train.py", "--weights", "yolov5s.pt", "--data", tiny_dataset, "--project", tmp_path / "runs"]
    printed = run(python + LAUNCH, "yolov5", *train, *SHORT_YOLOV5, cwd=tmp_path, code=2, **config, **environment)
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("yolorep: yolov5s.pt does not exist, and")
    assert ("YOLO_OFFLINE is set" if network == "YOLO_OFFLINE=1" else "github.com cannot be reached") in last
    assert network != "YOLO_OFFLINE=1" or not (tmp_path / "runs").exists()


@needs_package
def test_yolov5_trains_without_a_network_when_it_has_its_files(
    tiny_dataset: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    """The font, the commit and the requirements are asked for in vain, and soon given up."""
    train = ["train.py", "--weights", "", "--cfg", "yolov5n-rep.yaml", "--data", tiny_dataset, "--project", tmp_path]
    printed = run(SILENT + LAUNCH, "yolov5", *train, *SHORT_YOLOV5, cwd=tmp_path, **config, **ONLINE)
    assert "Traceback" not in printed
    assert "yolorep: the font of the labels: " in printed
    assert "urlopen error" not in printed
    assert "1 epochs completed" in printed


def test_ultralytics_trains_without_a_network_when_it_has_its_files(
    tiny_dataset: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    """It looks two names up as it is imported, and asks for a font."""
    train = ["train", "model=yolov5n-rep.yaml", f"data={tiny_dataset}", f"project={tmp_path}", *SHORT]
    begin = time.monotonic()
    printed = run(SILENT + LAUNCH, *train, cwd=tmp_path, **config, **ONLINE)
    assert time.monotonic() - begin < 300  # a look-up that is waited for takes 600 seconds here
    assert "Traceback" not in printed
    assert "1 epochs completed" in printed


AMP = """
from types import SimpleNamespace
import torch
from yolorep.hosts.offline import guard_hosts
guard_hosts()
from ultralytics.utils import checks

torch.cuda.get_device_name = lambda device: "a GPU"
model = SimpleNamespace(
    parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]), stride=torch.tensor([8, 16, 32])
)
print("passes", checks.check_amp(model))
"""


@pytest.mark.parametrize("network", WITHOUT)
def test_amp_check_passes_where_its_weights_cannot_be_downloaded(
    network: str, tmp_path: Path, config: dict[str, str]
) -> None:
    """On a GPU, stubbed here, ultralytics checks AMP with a model of its own before the first step."""
    pytest.importorskip("ultralytics")
    python, environment = WITHOUT[network]
    printed = run(python + AMP, cwd=tmp_path, **config, **environment)
    assert "passes True" in printed
    assert "checks skipped" in printed


YOLOV5_AMP = """
import sys
from yolorep.hosts.yolov5.compat import tree_modules
import torch
general, yolo = tree_modules(None, "utils.general", "models.yolo")
class OnGpu(torch.nn.Module):
    def parameters(self, recurse=True):
        yield type("P", (), {"device": torch.device("cuda")})()
print("passes", general.check_amp(OnGpu()))
"""


@needs_package
@pytest.mark.parametrize("network", WITHOUT)
def test_amp_check_of_yolov5_switches_amp_off_where_it_fails(
    network: str, tmp_path: Path, config: dict[str, str]
) -> None:
    """It catches everything, and says no: as on a machine without a network, not more."""
    python, environment = WITHOUT[network]
    printed = run(python + YOLOV5_AMP, cwd=tmp_path, **config, **environment)
    assert "passes False" in printed


@pytest.fixture
def with_program(tmp_path: Path) -> Iterator[Path]:
    """A data YAML without images whose `download:` is a program that leaves a file behind."""
    data = tmp_path / "data.yaml"
    program = "from pathlib import Path; Path('ran').touch()"
    data.write_text(f"path: {tmp_path}/none\ntrain: a\nval: b\nnc: 2\nnames: [red, blue]\ndownload: {program}\n")
    return data


@pytest.mark.parametrize("mode", ["val", "train"])
def test_only_training_runs_the_program_in_a_data_yaml(
    mode: str, with_program: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    arguments = [mode, "model=yolov5n-rep.yaml", f"data={with_program}", *SHORT]
    printed = run(ABSENT + LAUNCH, *arguments, cwd=tmp_path, code=2, **config, **ONLINE)
    assert "Traceback" not in printed
    assert (tmp_path / "ran").exists() is (mode == "train")
    says = (
        "ultralytics now runs its download: (from pathlib" if mode == "train" else "is not run: only training runs it"
    )
    assert says in printed


DATA_READERS = {
    "verify": ["good.pt", "rep.pt", "--data", "d-download.yaml"],
    "quantize": ["good.pt", "out.onnx", "--data", "d-download.yaml"],
    "val": ["model=good.pt", "data=d-download.yaml", "device=cpu"],
    "export": ["model=good.pt", "data=d-download.yaml", "format=openvino", "int8=True", "imgsz=64", "device=cpu"],
    "benchmark": ["model=good.pt", "data=d-download.yaml", "imgsz=64", "device=cpu", "format=torchscript"],
}


@pytest.mark.parametrize("command", DATA_READERS)
def test_no_command_that_reads_data_runs_the_program_in_its_yaml(
    command: str, tmp_path: Path, config: dict[str, str]
) -> None:
    bad_files.make(tmp_path)
    refused = 0 if command == "benchmark" else 2  # ultralytics' benchmark goes on with a table of failures
    run(ABSENT + LAUNCH, command, *DATA_READERS[command], cwd=tmp_path, code=refused, **config, **ONLINE)
    assert not list(tmp_path.rglob("HAS_RUN"))


@needs_package
@pytest.mark.parametrize("script", ["val.py", "train.py"])
def test_only_training_runs_the_program_in_a_data_yaml_of_yolov5(
    script: str, with_program: Path, tmp_path: Path, config: dict[str, str], yolov5_weights: dict[str, bytes]
) -> None:
    arguments = {"val.py": ["--weights", "yolov5s.pt"], "train.py": ["--weights", "", "--cfg", "yolov5n-rep.yaml"]}
    (tmp_path / "yolov5s.pt").write_bytes(yolov5_weights["yolov5s.pt"])
    printed = run(
        ABSENT + LAUNCH, "yolov5", script, *arguments[script], "--data", with_program, *SHORT_YOLOV5[2:10],
        cwd=tmp_path, code=2, **config, **ONLINE,
    )  # fmt: skip
    assert (tmp_path / "ran").exists() is (script == "train.py")
    says = {"train.py": "YOLOv5 now runs its download: (from pathlib", "val.py": "is not run: only training runs it"}
    assert says[script] in printed


REPORTS = """
import sys
from yolorep.hosts import offline
getattr(offline, sys.argv[1])()
print(sys.modules.get("openvino_telemetry", "as the user has it"))
"""


@pytest.mark.parametrize(
    ("call", "environment", "reporter"),
    [
        ("go_offline", ONLINE, "None"),  # a command of yolorep
        ("guard_hosts", OFFLINE, "None"),
        ("guard_hosts", ONLINE, "as the user has it"),  # a command of a host
    ],
    ids=str,
)
def test_openvino_and_nncf_report_nothing_where_the_network_is_not_used(
    call: str, environment: dict[str, str], reporter: str, tmp_path: Path
) -> None:
    assert run(REPORTS, call, cwd=tmp_path, **environment).strip() == reporter


REPORTED = (
    NO_NETWORK
    + """
from yolorep.telemetry import without_telemetry
openvino = without_telemetry("openvino")
import numpy, openvino.opset13 as ops, openvino as ov
x = ops.parameter([1, 3, 8, 8], numpy.float32)
w = numpy.ones((4, 3, 3, 3), numpy.float32)
model = ov.Model([ops.convolution(x, ops.constant(w), [1, 1], [1, 1], [1, 1], [1, 1])], [x])
nncf = without_telemetry("nncf")
nncf.quantize(model, nncf.Dataset([numpy.ones((1, 3, 8, 8), numpy.float32)]))
print("quantized")
"""
)


def test_quantizing_reaches_no_server(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    assert "quantized" in run(REPORTED, cwd=tmp_path)
