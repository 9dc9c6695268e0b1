"""Nothing leaves the device: followed with fake tensors that stand for a GPU's, and on a real GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import assert_same, assert_same_outputs, randomize_
from yolorep import C3, Conv_C3, deploy, expand, fold
from yolorep.blocks import BLOCKS, IDENTITIES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": lambda: Conv_C3(8, 16, 3, 2),
    "grouped": lambda: Conv_C3(8, 8, 5, g=2, d=2),
    "c3": lambda: C3(8, 16, 2),
    **{f"identity-{name}": (lambda name=name: Conv_C3(8, 16, identity=name)) for name in IDENTITIES},
    **{f"block-{name}": (lambda name=name: Conv_C3(8, 8, block=name)) for name in BLOCKS},
}


class StaysOn(TorchDispatchMode):
    """Fail at the first operation that makes an array on another device than `device`, or than none ("meta")."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [t for t in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(t, Tensor)]
        assert {t.device.type for t in made if t.dim()} <= {self.device, "meta"}, function
        return result


@pytest.fixture
def fake_gpu() -> Iterator[None]:
    """Tensors without values, which can be on a GPU that is not there."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield


def channels_last_(module: nn.Module) -> nn.Module:
    """`module.to(memory_format=torch.channels_last)`, which fake tensors do not support."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.dim() == 4:
                setattr(owner, name, nn.Parameter(parameter.detach().contiguous(memory_format=torch.channels_last)))
    return module


def assert_placed(module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert tensor.device.type == "cuda", name
        assert not tensor.is_floating_point() or tensor.dtype is dtype, name


@pytest.mark.parametrize("name", LAYERS)
def test_layers_stay_on_the_device(fake_gpu: None, name: str) -> None:
    with torch.device("cuda"):
        made, x = LAYERS[name]().eval(), torch.rand(1, 8, 9, 9)
    assert_placed(made)
    expected = made(x)
    with StaysOn("cuda"):
        made._switch_to_deploy()
    assert_placed(made)
    assert made(x).shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_layers_keep_their_dtype_on_the_device(fake_gpu: None, dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            made = C3(8, 16).eval()
    finally:
        torch.set_default_dtype(before)
    made._switch_to_deploy()
    assert_placed(made, dtype)


def test_fold_keeps_device_and_memory_format(fake_gpu: None) -> None:
    with torch.device("cuda"):
        module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Identity(), nn.BatchNorm2d(16), nn.AvgPool2d(2)).eval()
    folded = fold(channels_last_(module))
    assert_placed(folded)
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def fake_detector(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """An ultralytics model on the fake GPU; its head's initial biases would need the values of its strides."""
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    monkeypatch.setattr(tasks.Detect, "bias_init", lambda head: None)

    def build(yaml: str) -> nn.Module:
        with torch.device("cuda"):
            return tasks.DetectionModel(yaml, verbose=False).eval()

    return build


# In place: a deep copy of a fake tensor belongs to no mode.
SURGERY: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "deploy": ("yolov5n-rep.yaml", lambda model: deploy(model, inplace=True)),
    "fuse": ("yolov5n-rep.yaml", lambda model: model.fuse(verbose=False)),
    "expand": ("yolov5n.yaml", lambda model: expand(model, inplace=True)),
}


@pytest.mark.parametrize("name", SURGERY)
def test_a_whole_model_stays_on_the_device(fake_detector: Callable[[str], nn.Module], name: str) -> None:
    yaml, change = SURGERY[name]
    model = fake_detector(yaml)
    assert_placed(model)
    with StaysOn("cuda"):
        change(model)
    assert_placed(model)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_expanded_branches_are_on_the_device(fake_detector: Callable[[str], nn.Module], identity: str) -> None:
    assert_placed(expand(fake_detector("yolov5n.yaml"), identity=identity, select=[1, "model.2.*"], inplace=True))


def test_a_whole_model_keeps_its_memory_format(fake_detector: Callable[[str], nn.Module]) -> None:
    model = channels_last_(fake_detector("yolov5n-rep.yaml"))
    deploy(model, inplace=True)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4)


@gpu
@pytest.mark.parametrize("name", LAYERS)
def test_layers_fold_on_a_real_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    made = randomize_(LAYERS[name]()).cuda().eval()
    x = torch.rand(2, 8, 9, 9, device="cuda")
    expected = made(x)
    made._switch_to_deploy()
    assert_placed(made)
    assert_same(expected, made(x))


@gpu
def test_a_whole_model_folds_on_a_real_device(
    detector: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = detector("yolov5n-rep.yaml").cuda().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 64, 64, device="cuda")
    deployed = deploy(model)
    assert_placed(deployed)
    assert_same_outputs(model(x), deployed(x))
