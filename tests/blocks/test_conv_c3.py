"""`Conv_C3` as a layer: what it computes, how it switches, loads, copies, trains and refuses."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import assert_same, randomize_, relative_error, run_python
from yolorep import BlockError, Bottleneck, C3, Conv_C3, FoldError
from yolorep.blocks import BLOCKS, IDENTITIES, register_block

# name: (arguments, options); one of each kind of layer
LAYERS: dict[str, tuple[tuple, dict]] = {
    "same": ((8, 8), {}),
    "wider": ((8, 16, 3, 2), {}),
    "narrower": ((16, 8), {"identity": "average"}),
    "pointwise": ((8, 8, 1), {}),
    "grouped-dilated": ((8, 16, 5), {"g": 2, "d": 2, "identity": "interpolate"}),
    "padded": ((8, 8, 3, 1, 2), {}),
    "no-act": ((8, 8), {"act": False}),
    "se": ((8, 16), {"se": True}),
    "plain": ((8, 8), {"block": "plain"}),
}


def layer(name: str) -> Conv_C3:
    arguments, options = LAYERS[name]
    return randomize_(Conv_C3(*arguments, **options)).eval()


def image(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, 11, 9, dtype=dtype)


def folds(module: nn.Module, x: Tensor) -> nn.Module:
    """Assert that switching changes nothing that is computed; the switched module."""
    expected = module(x)
    assert module._switch_to_deploy() is None
    assert_same(expected, module(x))
    return module


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


@pytest.mark.parametrize("shortcut", [True, False])
def test_bottleneck_and_c3_are_yolos(shortcut: bool) -> None:
    """With plain convolutions they are ultralytics' own layers, weight for weight."""
    block = pytest.importorskip("ultralytics.nn.modules.block")
    pairs = [
        (Bottleneck(8, 8, shortcut, block="plain"), block.Bottleneck(8, 8, shortcut, k=((1, 1), (3, 3)))),
        (C3(8, 16, 2, shortcut, block="plain"), block.C3(8, 16, 2, shortcut)),
    ]
    for ours, theirs in pairs:
        randomize_(theirs).eval()
        for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eps = 1e-5
        ours.load_state_dict(theirs.state_dict())
        x = image(8)
        assert_same(theirs(x), ours.eval()(x))


def test_signatures_are_the_published_ones() -> None:
    convolution = "(c1, c2, k=3, s=1, p=None, g=1, d=1, act=True, *, block='repvgg', identity='auto', se=False)"
    bottleneck = "(c1, c2, shortcut=True, g=1, e=0.5, k=(1, 3), **rep)"
    c3 = "(c1, c2, n=1, shortcut=True, g=1, e=0.5, k=(1, 3), **rep)"
    for kind, expected in ((Conv_C3, convolution), (Bottleneck, bottleneck), (C3, c3)):
        parameters = inspect.signature(kind).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert str(inspect.Signature(bare)) == expected


def manual_norm(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm with the statistics of the batch, written out."""
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
    gamma, beta = norm.weight[:, None, None], norm.bias[:, None, None]
    return (y - mean) / torch.sqrt(var + norm.eps) * gamma + beta


def test_conv_c3_in_training_is_the_sum_of_repvgg() -> None:
    """Equation 1 of arXiv 2101.03697, before it is folded."""
    made = randomize_(Conv_C3(8, 8)).double().train()
    x = image(8, torch.float64)
    expected = manual_norm(F.conv2d(x, made.conv.weight, padding=1), made.bn)
    expected = expected + manual_norm(F.conv2d(x, made.branch_1x1.conv.weight), made.branch_1x1.bn)
    expected = expected + manual_norm(x, made.branch_identity)
    assert_same(F.silu(expected), made(x))


def test_conv_c3_strided_in_training_is_the_sum_of_repvgg_with_a_projection() -> None:
    made = randomize_(Conv_C3(8, 16, 3, 2)).double().train()
    x = image(8, torch.float64)
    expected = manual_norm(F.conv2d(x, made.conv.weight, stride=2, padding=1), made.bn)
    for branch in (made.branch_1x1, made.branch_identity):
        expected = expected + manual_norm(F.conv2d(x, branch.conv.weight, stride=2), branch.bn)
    assert_same(F.silu(expected), made(x))


def test_identity_auto_is_a_batch_norm_where_shapes_allow_it() -> None:
    assert isinstance(Conv_C3(8, 8).branch_identity, nn.BatchNorm2d)
    for arguments in ((8, 16), (8, 8, 3, 2), (8, 8, 3, 1, 2)):
        assert isinstance(Conv_C3(*arguments).branch_identity.conv, nn.Conv2d)
    assert not hasattr(Conv_C3(8, 8, identity="none"), "branch_identity")
    assert not hasattr(Conv_C3(8, 8, 1), "branch_1x1")


def stock_reference(c1: int, c2: int, s: int) -> nn.Sequential:
    """YOLO's convolution, batch norm and activation, with nothing of yolorep in it."""
    conv = nn.Conv2d(c1, c2, 3, s, 1, bias=False)
    return randomize_(nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c2), act=nn.SiLU()))).eval()


@pytest.mark.parametrize("block", sorted(BLOCKS))
@pytest.mark.parametrize(("c1", "c2", "s"), [(8, 8, 1), (8, 16, 2)])
def test_stock_weights_load_strictly_and_keep_their_function(c1: int, c2: int, s: int, block: str) -> None:
    """Whatever the branches held before: they are silenced, and wake up in training."""
    reference = stock_reference(c1, c2, s)
    made = randomize_(Conv_C3(c1, c2, 3, s, block=block)).eval()
    result = made.load_state_dict(reference.state_dict())
    made.bn.eps = reference.bn.eps
    assert result.missing_keys == result.unexpected_keys == []
    x = image(c1)
    assert_same(reference(x), made(x))
    folds(made, x)


def test_weights_of_ultralytics_load_strictly() -> None:
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    stock = randomize_(conv.Conv(8, 16, 3, 2)).eval()
    made = Conv_C3(8, 16, 3, 2).eval()
    made.load_state_dict(stock.state_dict())
    made.bn.eps = stock.bn.eps
    x = image(8)
    assert_same(stock(x), made(x))


def test_stock_weights_load_into_a_larger_model() -> None:
    names = OrderedDict(first=stock_reference(3, 8, 2), last=stock_reference(8, 8, 1))
    reference = nn.Sequential(names).eval()
    made = nn.Sequential(OrderedDict(first=randomize_(Conv_C3(3, 8, 3, 2)), last=randomize_(Conv_C3(8, 8)))).eval()
    made.load_state_dict(reference.state_dict())
    for name, part in names.items():
        getattr(made, name).bn.eps = part.bn.eps
    x = image(3)
    assert_same(reference(x), made(x))


def test_branch_weights_are_not_silenced_when_a_checkpoint_has_them() -> None:
    trained, fresh = layer("wider"), Conv_C3(8, 16, 3, 2).eval()
    fresh.load_state_dict(trained.state_dict())
    for mine, theirs in zip(fresh.modules(), trained.modules(), strict=True):
        if isinstance(mine, nn.BatchNorm2d):
            mine.eps = theirs.eps
    x = image(8)
    assert torch.equal(trained(x), fresh(x))


def test_loading_stock_weights_does_not_change_the_callers_dict() -> None:
    state = stock_reference(8, 8, 1).state_dict()
    keys = list(state)
    Conv_C3(8, 8).load_state_dict(state)
    assert list(state) == keys


def test_silenced_branches_learn_again() -> None:
    made = Conv_C3(8, 8).train()
    made.load_state_dict(stock_reference(8, 8, 1).state_dict())
    made(image(8)).square().mean().backward()
    assert made.branch_1x1.bn.weight.grad.abs().max() > 0
    assert made.branch_identity.weight.grad.abs().max() > 0


@pytest.mark.parametrize("block", sorted(BLOCKS))
@pytest.mark.parametrize("identity", IDENTITIES)
def test_gradients_reach_every_parameter(block: str, identity: str) -> None:
    for arguments in ((8, 8), (8, 16, 3, 2)):
        made = Conv_C3(*arguments, block=block, identity=identity, se=True).train()
        nn.init.ones_(made.act[0].fc1.bias)  # so that its few units are not dead by chance
        y = made(image(8))
        (y * torch.randn_like(y)).sum().backward()
        without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert without == []


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("deployed", [False, True])
def test_copies_are_independent(name: str, deployed: bool) -> None:
    made = layer(name)
    if deployed:
        made._switch_to_deploy()
    x = image(made.conv.in_channels)
    expected = made(x)
    twin = copy.deepcopy(made)
    for p in made.parameters():
        p.data.zero_()
    assert torch.equal(expected, twin(x))


def test_pickles_load_in_a_fresh_process(tmp_path: Path) -> None:
    """Which imports yolorep by itself, from the name that the pickle holds."""
    module, x = randomize_(nn.Sequential(Conv_C3(8, 16, 3, 2), C3(16, 16, se=True))).eval(), image(8)
    deployed = copy.deepcopy(module)
    for child in deployed:
        child._switch_to_deploy()
    modules = [module, deployed, pickle.dumps(module), pickle.dumps(deployed)]
    torch.save({"modules": modules, "x": x, "y": module(x)}, tmp_path / "modules.pt")
    code = """
import pickle, sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
x, y = saved["x"], saved["y"]
for module in saved["modules"]:
    module = pickle.loads(module) if isinstance(module, bytes) else module
    assert torch.allclose(module(x), y, atol=1e-5)
    for child in module:
        child._switch_to_deploy()
    assert torch.allclose(module(x), y, atol=1e-5)
print("same")
"""
    assert run_python(code, tmp_path / "modules.pt") == "same\n"


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


def test_se_stays_and_shrinks_by_sixteen() -> None:
    made = layer("se")
    squeeze = made.act[0]
    assert (squeeze.fc1.in_channels, squeeze.fc1.out_channels) == (16, 1)
    assert Conv_C3(8, 64, se=True).act[0].fc1.out_channels == 4
    x = image(8)
    y = made.bn(made.conv(x)) + sum(branch(x) for _, branch in made.branches())
    assert_same(F.silu(y * squeeze._scale(y)), made(x))


def test_training_blocks_do_not_fold_and_stay_whole() -> None:
    """All or none: the third block is at fault, and the first two are as they were."""
    module = randomize_(C3(8, 8, 2)).eval()
    module.m[1].cv2.branch_1x1.bn.train()
    before, names = copy.deepcopy(module.state_dict()), [name for name, _ in module.named_modules()]
    with pytest.raises(FoldError, match=r"^m\.1\.cv2\.branch_1x1\.bn: BatchNorm2d is in training mode"):
        module._switch_to_deploy()
    assert [name for name, _ in module.named_modules()] == names
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_overflow_is_told_with_its_path() -> None:
    module = nn.Sequential(C3(8, 8)).half().eval()
    nn.init.constant_(module[0].m[0].cv2.conv.weight, 6e4)
    nn.init.constant_(module[0].m[0].cv2.bn.running_var, 1e-4)
    with pytest.raises(FoldError, match=r"^m\.0\.cv2: .*not finite in torch\.float16"):
        module[0]._switch_to_deploy()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, 8), {"block": "repvg"}, "block 'repvg' is unknown; accepted: .*repvgg"),
        ((8, 8), {"block": ["repvgg"]}, "block .* is unknown"),
        ((8, 8), {"identity": "mean"}, "identity 'mean' is unknown; accepted: auto, conv, average"),
        ((8, 8), {"identity": None}, "identity None is unknown"),
        ((8, 8, 2), {}, r"\(2, 2\) convolution .* accepted: odd kernels"),
        ((8, 8, 4, 2), {"identity": "none"}, "odd kernels"),
        ((8, 8, 3, 1, 0), {}, r"padding \(0, 0\)"),
        ((8, 16, 3, 1, 2), {"identity": "select"}, "needs 'same' padding"),
    ],
    ids=str,
)
def test_wrong_options_are_block_errors(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        Conv_C3(*arguments, **options)


@pytest.mark.parametrize("options", [{"block": "x"}, {"identity": "x"}], ids=str)
@pytest.mark.parametrize("kind", [Bottleneck, C3])
def test_wrong_options_are_block_errors_in_nests(kind: type, options: dict) -> None:
    with pytest.raises(BlockError, match="accepted"):
        kind(8, 8, **options)


def test_names_hosts_attach_are_free() -> None:
    """`i`, `f`, `type` and `np` are set on each layer by the hosts; a child of that name would be a TypeError."""
    for block in BLOCKS:
        made = Conv_C3(8, 16, block=block)
        assert not {"i", "f", "type", "np"} & {name for module in made.modules() for name, _ in module.named_children()}


def test_register_block_refuses_a_taken_name() -> None:
    with pytest.raises(BlockError, match="'repvgg' is already registered, by yolorep.blocks.repvgg"):
        register_block("repvgg")(lambda site: {})


def test_a_new_block_is_a_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BLOCKS, "two", raising=False)  # so that it is taken out again
    register_block("two")(lambda site: {f"branch_{i}": site.conv_bn(site.conv.kernel_size, 1) for i in range(2)})
    folds(randomize_(Conv_C3(8, 16, 3, 2, block="two")).eval(), image(8))
