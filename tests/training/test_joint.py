"""The joint step of a block in training against its separate form: outputs, gradients, running statistics, memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tests.helpers import randomize_, relative_error, run_python, tensors
from yolorep import Conv_C3
from yolorep.bench.training import kept_bytes
from yolorep.blocks import laws
from yolorep.stock_layers import rep_blocks
from yolorep.training.joint import joint_sum, pays

# (c1, c2, k, s, p, g, d), options of a Conv_C3
GEOMETRIES: dict[str, tuple[tuple, dict]] = {
    "same": ((8, 8), {}),
    "stride": ((8, 8, 3, 2), {}),
    "wider": ((8, 16), {}),
    "wider-average": ((8, 16), {"identity": "average"}),
    "wider-select-stride": ((8, 12, 3, 2), {"identity": "select"}),
    "narrower-interpolate": ((16, 8), {"identity": "interpolate"}),
    "no-identity": ((8, 8), {"identity": "none"}),
    "groups": ((8, 16, 3, 1, None, 4), {}),
    "groups-map": ((8, 16, 3, 2, None, 2), {"identity": "average"}),
    "depthwise": ((8, 8, 3, 1, None, 8), {}),
    "dilated": ((8, 8, 5, 1, None, 1, 2), {}),
    "padded": ((8, 8, 3, 1, 2), {}),
    "padded-stride": ((8, 8, 3, 2, 3), {}),
    "pointwise": ((8, 8, 1), {}),
    "mobileone": ((8, 8), {"block": "mobileone(branches=2)"}),
    "mobileone-pointwise": ((8, 8, 1), {"block": "mobileone(branches=2)"}),
    "diverse": ((8, 8), {"block": "dbb"}),  # with branches of which the joint step knows nothing
}
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@pytest.fixture
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks take the joint step for small inputs as well."""
    monkeypatch.setattr("yolorep.training.joint.WORTHWHILE", 0)


def block(name: str = "same", dtype: torch.dtype = torch.float64) -> Conv_C3:
    arguments, options = GEOMETRIES[name]
    return randomize_(Conv_C3(*arguments, **options)).to(dtype).train()


def image(
    channels: int = 8, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (11, 9), batch: int = 3
) -> Tensor:
    return torch.randn(batch, channels, *size, dtype=dtype) * 1.5 + 0.7


def norms(layer: nn.Module) -> list[_BatchNorm]:
    return [m for m in layer.modules() if isinstance(m, _BatchNorm)]


def separate(layer: Conv_C3, x: Tensor) -> Tensor:
    y = layer.bn(layer.conv(x))
    for _, branch in layer.branches():
        y = y + branch(x)
    return F.silu(y)


def joint(layer: Conv_C3, x: Tensor) -> Tensor:
    y = joint_sum(layer.conv, layer.bn, (branch for _, branch in layer.branches()), x)
    assert y is not None, "left to the separate form"
    return F.silu(y)


def falls_back(layer: Conv_C3, x: Tensor) -> bool:
    return joint_sum(layer.conv, layer.bn, (branch for _, branch in layer.branches()), x) is None


def trained(
    form: Callable[[Conv_C3, Tensor], Tensor], layer: Conv_C3, x: Tensor, autocast: torch.dtype | None = None
) -> dict[str, Any]:
    """Everything that a step leaves behind, by name."""
    layer, x = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    cast = torch.autocast(x.device.type, autocast) if autocast else nullcontext()
    with cast:
        y = form(layer, x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    (y * weight).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    return {"y": y, "gradient of x": x.grad, **gradients, **dict(layer.named_buffers())}


def assert_same_step(expected: dict[str, Any], got: dict[str, Any], limit: float) -> None:
    assert expected.keys() == got.keys()
    # Gradients that are zero in exact arithmetic, as behind a batch norm, are compared with the others' size.
    size = max(float(v.abs().max()) for k, v in expected.items() if k.startswith("gradient") and v is not None)
    for name, value in expected.items():
        assert (value is None) == (got[name] is None), name
        if value is not None:
            assert value.dtype == got[name].dtype, name
            assert value.shape == got[name].shape, name
            floor = size if name.startswith("gradient") else 0.0
            difference = float((value - got[name]).detach().double().abs().max())
            assert difference <= limit * max(float(value.detach().abs().max()), floor), f"{name}: {difference:.2e}"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_joint_step_is_the_separate_one(name: str, layout: torch.memory_format) -> None:
    layer = block(name).to(memory_format=layout)
    x = image(layer.conv.in_channels).to(memory_format=layout)
    assert_same_step(trained(separate, layer, x), trained(joint, layer, x), 1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joint_step_in_lower_precision(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """In bfloat16 by autocast; both forms are as far from float64 as their dtype is coarse."""
    layer, x = block(dtype=torch.float32).to(memory_format=layout), image(dtype=torch.float32)
    x = x.to(torch.bfloat16 if dtype == torch.bfloat16 else dtype).to(memory_format=layout)
    cast = dtype if dtype == torch.bfloat16 else None
    assert_same_step(trained(separate, layer, x, cast), trained(joint, layer, x, cast), LIMITS[dtype])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_joint_step_on_a_gpu(dtype: torch.dtype) -> None:
    cast = None if dtype == torch.float32 else dtype
    layer, x = block(dtype=torch.float32).cuda(), image(dtype=torch.float32).cuda().to(dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert_same_step(trained(separate, layer, x, cast), trained(joint, layer, x, cast), LIMITS[dtype])


def _affineless(layer: Conv_C3) -> None:
    layer.branch_1x1.bn = nn.BatchNorm2d(8, affine=False, dtype=torch.float64)


def _biased(layer: Conv_C3) -> None:
    layer.conv.bias = nn.Parameter(torch.randn(8, dtype=torch.float64))
    layer.branch_1x1.conv.bias = nn.Parameter(torch.randn(8, dtype=torch.float64))


def _statistics_free(layer: Conv_C3) -> None:
    layer.branch_identity = nn.BatchNorm2d(8, track_running_stats=False, dtype=torch.float64)


CHANGES: dict[str, Callable[[Conv_C3], object]] = {
    "no affine": _affineless,
    "conv bias": _biased,
    "no running statistics": _statistics_free,
    "no running statistics, eval": lambda layer: (_statistics_free(layer), layer.branch_identity.eval()),
    "frozen dense": lambda layer: layer.bn.eval(),
    "frozen branch": lambda layer: layer.branch_1x1.bn.eval(),
    "frozen identity": lambda layer: layer.branch_identity.eval(),
    "all frozen": lambda layer: [norm.eval() for norm in norms(layer)],
    "cumulative": lambda layer: [setattr(norm, "momentum", None) for norm in norms(layer)],
    "no momentum": lambda layer: [setattr(norm, "momentum", 0.0) for norm in norms(layer)],
    "zero gain": lambda layer: nn.init.zeros_(layer.branch_1x1.bn.weight),
    "fixed dense": lambda layer: layer.conv.requires_grad_(False),
    "fixed branch": lambda layer: layer.branch_1x1.requires_grad_(False),
    "fixed norms": lambda layer: [norm.requires_grad_(False) for norm in norms(layer)],
    "sync": lambda layer: nn.SyncBatchNorm.convert_sync_batchnorm(layer),
}


@pytest.mark.parametrize("change", CHANGES)
def test_joint_step_with(change: str) -> None:
    layer, x = block(), image()
    CHANGES[change](layer)
    assert_same_step(trained(separate, layer, x), trained(joint, layer, x), 1e-10)


@pytest.mark.parametrize("only", ["x", "conv.weight", "branch_1x1.conv.weight", "branch_identity.bias"])
def test_joint_gradient_of_one_tensor_alone(only: str) -> None:
    layer, x = block().requires_grad_(False), image()
    wanted = x if only == "x" else layer.get_parameter(only)
    wanted.requires_grad_()
    expected, got = (torch.autograd.grad(form(layer, x).square().sum(), wanted)[0] for form in (separate, joint))
    assert relative_error(expected, got) < 1e-10


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 0.0), (3.0, 0.0), (1e3, 1e-2), (-20.0, 1.0)])
def test_joint_statistics_do_not_cancel(offset: float, spread: float, layout: torch.memory_format) -> None:
    """A channel far from zero, or constant: as close to float64 as the separate form is."""
    layer, x = block(dtype=torch.float32), torch.randn(3, 8, 11, 9)
    x[:, 2] = offset + spread * x[:, 2]
    x = x.to(memory_format=layout)
    exact = trained(separate, copy.deepcopy(layer).double(), x.double())
    theirs, ours = trained(separate, layer, x), trained(joint, layer, x)
    for name in ("y", "branch_identity.running_mean", "branch_identity.running_var", "branch_1x1.bn.running_var"):
        error, reference = relative_error(exact[name], ours[name]), relative_error(exact[name], theirs[name])
        assert error <= max(1e-5, 2 * reference), f"{name}: {error:.1e}, separate {reference:.1e}"


@pytest.mark.parametrize(("size", "batch"), [((1, 2), 1), ((1, 1), 2), ((2, 1), 3)])
def test_joint_step_of_a_tiny_batch(size: tuple[int, int], batch: int) -> None:
    layer, x = block(), image(size=size, batch=batch)
    assert_same_step(trained(separate, layer, x), trained(joint, layer, x), 1e-8)


@pytest.mark.usefixtures("small_too")
def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block()(image(size=(1, 1), batch=1))


def _steps(form: Callable[[Conv_C3, Tensor], Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layer = block()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        form(layer, image()).square().mean().backward()
        optimizer.step()
    return layer.state_dict()


def test_joint_training_ends_where_separate_training_does() -> None:
    expected, got = _steps(separate), _steps(joint)
    assert all(relative_error(value, got[name]) < 1e-9 for name, value in expected.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_joint_step_under_checkpointing(reentrant: bool) -> None:
    def checkpointed(form: Callable[[Conv_C3, Tensor], Tensor]) -> Callable[[Conv_C3, Tensor], Tensor]:
        return lambda layer, x: checkpoint(form, layer, x, use_reentrant=reentrant)

    layer, x = block(), image()
    assert_same_step(trained(checkpointed(separate), layer, x), trained(checkpointed(joint), layer, x), 1e-10)


def test_joint_step_without_gradients_keeps_nothing_but_the_statistics() -> None:
    layer, x = block(), image()
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        assert relative_error(separate(expected, x), joint(layer, x)) < 1e-10
    assert all(relative_error(a, b) < 1e-10 for a, b in zip(expected.buffers(), layer.buffers(), strict=True))


def test_second_derivatives_are_refused() -> None:
    layer, x = block(), image().requires_grad_()
    (first,) = torch.autograd.grad(joint(layer, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("name", ["same", "wider", "wider-average", "stride"])
def test_joint_step_keeps_what_a_plain_convolution_keeps(name: str) -> None:
    layer = block(name, torch.float32)
    x = image(layer.conv.in_channels, torch.float32, (64, 64)).requires_grad_()
    plain = kept_bytes(lambda: F.silu(layer.bn(layer.conv(x))))
    assert kept_bytes(lambda: joint(layer, x)) <= 1.05 * plain
    assert kept_bytes(lambda: separate(layer, x)) > 1.15 * plain


def _subclassed(layer: Conv_C3) -> None:
    layer.branch_identity = type("Own", (nn.BatchNorm2d,), {})(8, dtype=torch.float64)


REFUSED: dict[str, Callable[[Conv_C3], object]] = {
    "hook": lambda layer: layer.conv.register_forward_hook(lambda *_: None),
    "backward hook": lambda layer: layer.bn.register_full_backward_hook(lambda *_: None),
    "own forward": lambda layer: setattr(layer.bn, "forward", layer.bn.forward),
    "parametrized": lambda layer: nn.utils.parametrizations.weight_norm(layer.conv),
    "padding mode": lambda layer: setattr(layer.conv, "padding_mode", "reflect"),
    "half norm": lambda layer: layer.bn.bfloat16(),
}


@pytest.mark.parametrize("change", REFUSED)
def test_joint_step_leaves_to_the_separate_form(change: str) -> None:
    layer = block()
    REFUSED[change](layer)
    assert falls_back(layer, image())


@pytest.mark.parametrize("path", ["conv", "bn", "branch_1x1", "branch_1x1.conv", "branch_1x1.bn", "branch_identity"])
@pytest.mark.usefixtures("small_too")
def test_hooks_inside_a_block_are_called(path: str) -> None:
    layer, x, seen = block(), image(), []
    layer.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
    expected = trained(separate, layer, x)
    assert_same_step(expected, trained(lambda layer, x: layer(x), layer, x), 1e-10)
    assert seen == [path] * 2


def test_a_branch_of_its_own_kind_is_added_as_it_is() -> None:
    layer, x = block(), image()
    _subclassed(layer)
    assert_same_step(trained(separate, layer, x), trained(joint, layer, x), 1e-10)


def test_joint_step_is_used_in_training_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("yolorep.blocks.laws.joint_sum", lambda *arguments: called.append(arguments))
    layer, x = block(), image(size=(128, 96))
    layer(x)
    assert len(called) == 1
    layer(image())  # too small to be worth it
    layer.eval()(x)
    layer.train().joint = False
    layer(x)
    assert len(called) == 1


@pytest.mark.usefixtures("small_too")
def test_function_transforms_take_the_separate_form() -> None:
    layer, x = block(), image()
    for norm in norms(layer):
        norm.eval()
    found = torch.func.jacrev(lambda bias: torch.func.functional_call(layer, {"bn.bias": bias}, x).sum((0, 2, 3)))(
        layer.bn.bias
    )
    assert found.shape == (8, 8)


@pytest.mark.usefixtures("small_too")
def test_joint_blocks_compile() -> None:
    """A compiler sees the separate form, which it fuses better."""
    layer, x = block(), image()
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    assert relative_error(layer(x), compiled(x)) < 1e-10


TWO_PROCESSES = """
import copy, os, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from yolorep import Conv_C3
from yolorep.training import joint as joint_module
from yolorep.training.joint import joint_sum, pays

joint_module.WORTHWHILE = 0

def work(rank, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    block = Conv_C3(4, 4).double().train()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
    x = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)[rank]
    assert joint_sum(synced.conv, synced.bn, [m for _, m in synced.branches()], x) is None
    grads = []
    for joint in (True, False):
        model = copy.deepcopy(block)
        model.joint = joint
        ddp = nn.parallel.DistributedDataParallel(model)
        ddp(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(*grads))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
    print("same")
"""


def test_two_processes(tmp_path: Any) -> None:
    """Synchronized batch norms stay separate; others train jointly under DistributedDataParallel."""
    assert "same" in run_python(TWO_PROCESSES, tmp_path / "rendezvous", fresh=True)


def test_a_whole_model_has_the_gradients_of_the_separate_form(rep: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """ultralytics' YOLOv5n with rep rows, every block of it in the joint step."""
    monkeypatch.setattr(laws, "pays", lambda x: True)
    x, steps = torch.rand(8, 3, 128, 128, dtype=torch.float64), []
    monkeypatch.setattr(laws, "joint_sum", lambda *given: steps.append(joint_sum(*given)) or steps[-1])
    gradients = []
    for form in (True, False):
        model = copy.deepcopy(rep).double().train()
        monkeypatch.setattr(Conv_C3, "joint", form)
        sum(output.square().mean() for output in tensors(model(x))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert sum(step is not None for step in steps) == len(rep_blocks(rep))
    assert gradients[0].keys() == gradients[1].keys()
    assert all(relative_error(value, gradients[0][name]) < 1e-10 for name, value in gradients[1].items())


def test_backward_of_a_float32_pass_works_inside_autocast(small_too: None) -> None:
    layer, x = block(dtype=torch.float32), image(dtype=torch.float32).requires_grad_()
    expected = trained(joint, layer, x)
    y = joint(layer, x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    with torch.autocast("cpu", torch.bfloat16):
        (y * weight).sum().backward()
    assert x.grad is not None
    assert relative_error(expected["gradient of x"], x.grad) < 1e-5


def test_an_output_that_nothing_uses_has_no_gradient(small_too: None) -> None:
    layer, x = block(), image().requires_grad_()
    joint(layer, x)
    y, z = joint(layer, x), image().requires_grad_()
    (z.sum() + y.detach().sum()).backward()
    assert x.grad is None
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_an_overflow_reaches_every_gradient(layout: torch.memory_format) -> None:
    """What `torch.amp.GradScaler` looks for: it skips a step if any gradient is not finite."""
    layer = block(dtype=torch.float32).to(memory_format=layout)
    x = image(dtype=torch.float32).to(memory_format=layout).requires_grad_()
    y = joint(layer, x)
    gradient = torch.zeros_like(y)
    gradient[0, :, 0, 0] = float("inf")
    y.backward(gradient)
    for name, parameter in layer.named_parameters():
        assert not torch.isfinite(parameter.grad).all(), name


def test_the_default_form_depends_on_the_device_and_the_size() -> None:
    large = torch.empty(1, 4, 512, 512)
    assert pays(large)
    assert not pays(large[..., :8])
    assert not pays(torch.empty_like(large, device="meta")), "no CPU: kernel launches decide"
