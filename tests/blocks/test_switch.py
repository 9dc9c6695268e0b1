"""`_switch_to_deploy`: the same function from one convolution, all blocks or none, whatever they are stored in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.blocks.layers import LAYERS, folds, image, layer
from tests.helpers import assert_same, randomize_, relative_error
from yolorep import C3, Bottleneck, Conv_C3, FoldError, fold


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_switch_keeps_the_function(name: str, dtype: torch.dtype) -> None:
    made = layer(name).to(dtype)
    folds(made, image(made.conv.in_channels, dtype))


@pytest.mark.parametrize("name", LAYERS)
def test_switch_leaves_one_convolution_and_the_activation(name: str) -> None:
    made = layer(name)
    act = made.act
    made._switch_to_deploy()
    assert [child for child, _ in made.named_children()] == ["conv", "act"]
    assert type(made.conv) is nn.Conv2d
    assert made.act is act
    assert set(made.state_dict()) - {f"act.{key}" for key in act.state_dict()} == {"conv.weight", "conv.bias"}
    geometry = ("kernel_size", "stride", "padding", "dilation", "groups")
    fresh = layer(name).conv
    assert all(getattr(made.conv, key) == getattr(fresh, key) for key in geometry)


@pytest.mark.parametrize("name", LAYERS)
def test_switch_twice_is_switch_once(name: str) -> None:
    made = layer(name)
    made._switch_to_deploy()
    conv, weight = made.conv, made.conv.weight.clone()
    made._switch_to_deploy()
    assert made.conv is conv
    assert torch.equal(made.conv.weight, weight)
    assert made.deployed


@pytest.mark.parametrize("rep", [{}, {"block": "plain"}, {"identity": "none"}, {"se": True}], ids=str)
@pytest.mark.parametrize("kernels", [(1, 3), (3, 3)])
@pytest.mark.parametrize("kind", [Bottleneck, C3])
def test_switch_reaches_nested_blocks(kind: type, kernels: tuple[int, int], rep: dict) -> None:
    module = randomize_(nn.Sequential(kind(8, 8, k=kernels, **rep), kind(8, 16, k=kernels, **rep))).eval()
    x = image(8, torch.float64)
    module.double()
    expected = module(x)
    for child in module:
        assert child._switch_to_deploy() is None
    assert_same(expected, module(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert all(m.deployed for m in module.modules() if isinstance(m, Conv_C3))


@pytest.mark.parametrize("deployed", [False, True])
def test_a_block_folds_inside_a_nest(deployed: bool) -> None:
    """Where it is linear; an activation is told with its path."""
    nest = nn.Sequential(layer("no-act"), nn.BatchNorm2d(8)).eval()
    active = nn.Sequential(layer("same"), nn.BatchNorm2d(8)).eval()
    for block in (nest[0], active[0]) if deployed else ():
        block._switch_to_deploy()
    x = image(8)
    assert_same(nest(x), fold(nest)(x))
    with pytest.raises(FoldError, match=r"^0\.act: SiLU is not linear"):
        fold(active)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_switches_to_half_precision(name: str, dtype: torch.dtype) -> None:
    made = layer(name).to(dtype)
    x = image(made.conv.in_channels, dtype)
    expected = made(x)
    made._switch_to_deploy()
    assert {p.dtype for p in made.parameters()} == {dtype}
    assert relative_error(expected, made(x)) < (3e-2 if dtype is torch.bfloat16 else 5e-3)


@pytest.mark.parametrize("name", ["same", "wider", "grouped-dilated"])
def test_switch_keeps_the_memory_format(name: str) -> None:
    made = layer(name).to(memory_format=torch.channels_last)
    x = image(8).to(memory_format=torch.channels_last)
    folds(made, x)
    assert made.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert made(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LAYERS)
def test_switch_keeps_the_training_flag_and_requires_grad(name: str) -> None:
    made = layer(name)
    made.conv.weight.requires_grad_(False)
    made._switch_to_deploy()
    assert not any(p.requires_grad for p in made.conv.parameters())
    assert not any(m.training for m in made.modules())


def test_moving_averages_of_a_block_fold() -> None:
    """As hosts make them: a deep copy whose state follows the model's."""
    made = layer("wider")
    average = copy.deepcopy(made)
    for p in made.parameters():
        p.data.add_(0.1)
    live = made.state_dict()
    for key, value in average.state_dict().items():
        if value.dtype.is_floating_point:
            value.mul_(0.9).add_(live[key], alpha=0.1)
    folds(average, image(8))


@pytest.mark.parametrize("name", ["same", "wider", "se"])
def test_compiled_before_and_after_switching(name: str) -> None:
    made = layer(name)
    x = image(8)
    expected = made(x)
    assert_same(expected, torch.compile(made, backend="eager", fullgraph=True)(x))
    made._switch_to_deploy()
    torch._dynamo.reset()
    assert_same(expected, torch.compile(made, backend="eager", fullgraph=True)(x))


def test_sync_batch_norm_folds() -> None:
    made = nn.SyncBatchNorm.convert_sync_batchnorm(layer("wider"))
    assert any(isinstance(m, nn.SyncBatchNorm) for m in made.modules())
    folds(made, image(8))


def test_training_blocks_do_not_fold_and_stay_whole() -> None:
    """All or none: the third block is at fault, and the first two are as they were."""
    module = randomize_(C3(8, 8, 2)).eval()
    module.m[1].cv2.branch_1x1.bn.train()
    before, names = copy.deepcopy(module.state_dict()), [name for name, _ in module.named_modules()]
    with pytest.raises(FoldError, match=r"^m\.1\.cv2\.branch_1x1\.bn: BatchNorm2d is in training mode"):
        module._switch_to_deploy()
    assert [name for name, _ in module.named_modules()] == names
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


FAULTY = ("conv", "bn", "branch_1x1.conv", "branch_1x1.bn", "branch_identity", "branch_1x1")


@pytest.mark.parametrize("where", FAULTY)
def test_the_layer_at_fault_is_told_with_a_path_that_exists(where: str) -> None:
    module = nn.Sequential(C3(8, 8)).eval()
    fault = module.get_submodule(f"0.m.0.cv2.{where}")
    fault.register_forward_hook(lambda *_: None)
    for root, path in ((module[0], f"m.0.cv2.{where}"), (module[0].m[0].cv2, where)):
        with pytest.raises(FoldError) as caught:
            root._switch_to_deploy()
        assert caught.value.path == path
        assert root.get_submodule(path) is fault


@pytest.mark.parametrize("where", ["bn", "branch_1x1.bn", "branch_identity"])
def test_training_is_told_with_a_path_that_exists(where: str) -> None:
    module = C3(8, 8).eval()
    module.get_submodule(f"m.0.cv2.{where}").train()
    with pytest.raises(FoldError, match="training mode") as caught:
        module._switch_to_deploy()
    assert caught.value.path == f"m.0.cv2.{where}"


def test_hooks_on_a_block_stay() -> None:
    made, x, seen = layer("same"), image(8), []
    made.register_forward_hook(lambda module, inputs, output: seen.append(output))
    folds(made, x)
    assert len(seen) == 2


def test_a_hooked_block_does_not_disappear_into_a_fold() -> None:
    for fault in ("", "act"):
        nest = nn.Sequential(layer("no-act"), nn.BatchNorm2d(8)).eval()
        nest[0].get_submodule(fault).register_forward_hook(lambda module, inputs, output: 2 * output)
        with pytest.raises(FoldError, match="has forward hooks") as caught:
            fold(nest)
        assert caught.value.path == f"0.{fault}".rstrip(".")


@pytest.mark.parametrize("name", LAYERS)
def test_switched_under_inference_mode_can_be_trained(name: str) -> None:
    made = layer(name)
    x = image(made.conv.in_channels)
    expected = made(x)
    with torch.inference_mode():
        made._switch_to_deploy()
    assert_same(expected, made(x))
    assert not any(p.is_inference() for p in made.parameters())
    made.train()(x).sum().backward()
    assert made.conv.weight.grad.abs().max() > 0
    torch.optim.SGD(made.parameters(), 0.1).step()


def test_overflow_is_told_with_its_path() -> None:
    module = nn.Sequential(C3(8, 8)).half().eval()
    nn.init.constant_(module[0].m[0].cv2.conv.weight, 6e4)
    nn.init.constant_(module[0].m[0].cv2.bn.running_var, 1e-4)
    with pytest.raises(FoldError, match=r"^m\.0\.cv2: .*not finite in torch\.float16"):
        module[0]._switch_to_deploy()
