"""Expand and deploy over ultralytics' own YOLOv5: same function, same layers."""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_same_outputs, assert_untouched, randomize_, snapshot, tensors
from yolorep import Conv_C3, deploy, expand
from yolorep.modes import evaluating
from yolorep.stock_layers import rep_blocks, stock_convs

STOCK = "yolov5n.yaml"


def image(dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 64, 64, dtype=dtype)


def kinds(model: nn.Module) -> Counter:
    return Counter(type(m) for m in model.modules())


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("identity", ["auto", "average", "none"])
def test_expand_keeps_the_function(stock: nn.Module, identity: str, dtype: torch.dtype) -> None:
    stock.to(dtype)
    x = image(dtype)
    before = snapshot(stock)
    expanded = expand(stock, identity=identity)
    assert len(rep_blocks(expanded)) > 20
    assert_same_outputs(stock(x), expanded(x))
    assert_untouched(before, stock)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_deploy_keeps_the_function(rep: nn.Module, dtype: torch.dtype) -> None:
    rep.to(dtype)
    x = image(dtype)
    before = snapshot(rep)
    deployed = deploy(rep)
    assert_same_outputs(rep(x), deployed(x))
    assert_untouched(before, rep)


def test_deploy_of_expand_is_the_stock_model_to_the_bit(stock: nn.Module) -> None:
    """So it trains on as the stock model does, and not only computes what that does."""
    again = deploy(expand(stock))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in stock.state_dict().items())
    x = image(torch.float32, 4)
    assert_same_outputs(stock.train()(x), again.train()(x))


def test_expand_of_deploy_round_trips(rep: nn.Module) -> None:
    rep.double()
    x = image()
    once = deploy(rep)
    again = expand(once)
    assert_same_outputs(rep(x), again(x))
    assert_same_outputs(rep(x), deploy(again)(x))


def test_deployed_statistics_are_those_that_training_sees() -> None:
    """A trained block and its deployed layer agree in training too, as far as its branches are uncorrelated."""
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    model = randomize_(expand(nn.Sequential(conv.Conv(8, 16, 3)).eval(), identity="none")).double()
    x = torch.randn(64, 8, 16, 16, dtype=torch.float64)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps, norm.momentum = 1e-3, None
        norm.reset_running_stats()
    model.train()(x)
    after = deploy(model.eval())
    recorded, seen = after[0].bn, after[0].conv(x)
    assert torch.allclose(recorded.running_mean, seen.mean((0, 2, 3)), atol=1e-8)
    ratio = seen.var((0, 2, 3)) / recorded.running_var
    assert (ratio - 1).abs().max() < 0.5


def test_deploy_restores_every_stock_layer(stock: nn.Module, rep: nn.Module) -> None:
    for model in (deploy(rep), deploy(expand(stock))):
        assert kinds(model) == kinds(stock)
        assert layout(model) == layout(stock)
        assert [name for name, _ in model.named_modules()] == [name for name, _ in stock.named_modules()]
        for mine, theirs in zip(model.modules(), stock.modules(), strict=True):
            assert set(vars(mine)) == set(vars(theirs)), type(mine)
            assert described(mine) == described(theirs)


def described(module: nn.Module) -> str:
    """Its options, less the eps that these tests have set at random."""
    return re.sub(r"eps=[^,]*", "", module.extra_repr())


def test_layers_keep_what_the_host_attached(stock: nn.Module, rep: nn.Module) -> None:
    attached = [[(layer.i, layer.f, layer.type) for layer in model.model] for model in (stock, rep, deploy(rep))]
    assert attached[0] == attached[1] == attached[2]
    for model in (expand(stock), deploy(expand(stock))):
        assert [layer.i for layer in model.model] == [layer.i for layer in stock.model]
        assert model.save == stock.save
        assert torch.equal(model.stride, stock.stride)
    assert [layer.np for layer in rep.model] == [sum(p.numel() for p in layer.parameters()) for layer in rep.model]


def test_yaml_says_what_the_model_is(stock: nn.Module, rep: nn.Module) -> None:
    assert expand(stock).yaml["rep"] == {"block": "repvgg", "identity": "auto"}
    for model in (deploy(expand(stock)), deploy(rep)):
        assert "rep" not in model.yaml
        names = {row[2] for row in (*model.yaml["backbone"], *model.yaml["head"])}
        assert not names & {"C3Rep", "Conv_C3"}
        assert model.yaml["yaml_file"] == STOCK


SELECT = {
    "pattern": ("model.4.*", 7),
    "index": (4, 7),
    "two": ([1, "model.2.cv1"], 2),
    "function": (lambda name, layer: layer.conv.stride == (2, 2) and layer.conv.kernel_size == (3, 3), 6),
    "default": (None, 48),
}


@pytest.mark.parametrize("case", SELECT)
def test_select_survives_a_rebuild(stock: nn.Module, case: str) -> None:
    """The host makes the model again from `model.yaml` whenever it trains."""
    from ultralytics.nn.tasks import DetectionModel

    select, count = SELECT[case]
    model = expand(stock, select=select)
    assert len(rep_blocks(model)) == count
    rebuilt = DetectionModel(copy.deepcopy(model.yaml), verbose=False)
    assert rep_blocks(rebuilt) == rep_blocks(model)
    assert layout(rebuilt) == layout(model)


def test_default_leaves_alone_what_costs_more_than_it_is_of_the_network() -> None:
    """Depthwise layers and those of attentions, unless they are all that the block fits beside, or are selected."""
    from ultralytics import YOLO

    model = YOLO("yolo12n.yaml").model
    depthwise = {name for name, layer in stock_convs(model) if layer.conv.groups > 1}
    attention = {name for name, _ in stock_convs(model) if ".attn." in name}
    taken = set(rep_blocks(expand(model)))
    assert {"model.1", "model.21.cv2.0.0"} <= taken
    assert len(depthwise) == len(depthwise - taken) == 14
    assert len(attention) == len(attention - taken) == 24
    assert set(rep_blocks(expand(model, "replk"))) == depthwise & attention  # the only 7x7 ones
    assert rep_blocks(expand(model, select="model.21.cv3.0.0.0")) == ["model.21.cv3.0.0.0"]


def test_inplace_changes_the_model_itself(stock: nn.Module) -> None:
    layer = stock.model[1]
    assert expand(stock, inplace=True) is stock
    assert isinstance(layer, Conv_C3)
    assert deploy(stock, inplace=True) is stock
    assert stock.model[1] is layer
    assert not rep_blocks(stock)


def test_hooks_and_shared_layers_stay(stock: nn.Module) -> None:
    stock.shared = stock.model[3]
    seen: list[str] = []
    stock.model[3].register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    expanded = expand(stock)
    assert expanded.shared is expanded.model[3]
    expanded(image(torch.float32))
    deployed = deploy(expanded)
    assert deployed.shared is deployed.model[3]
    deployed(image(torch.float32))
    assert seen == ["Conv_C3", "Conv"]


def test_requires_grad_training_flag_and_norms_stay(stock: nn.Module) -> None:
    for parameter in stock.model[1].parameters():
        parameter.requires_grad_(False)
    stock.train()
    stock.model[1].bn.eval()
    expanded = expand(stock)
    assert not expanded.model[1].conv.weight.requires_grad
    assert expanded.model[3].training
    assert not expanded.model[1].branch_1x1.bn.training
    branch, dense = expanded.model[3].branch_1x1.bn, expanded.model[3].bn
    assert (branch.eps, branch.momentum) == (dense.eps, dense.momentum) != (1e-5, 0.1)
    deployed = deploy(expanded.eval())
    assert not any(p.requires_grad for p in deployed.model[1].parameters())
    assert all(p.requires_grad for p in deployed.model[3].parameters())
    assert not any(m.training for m in deployed.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_deploy_keeps_the_dtype(rep: nn.Module, dtype: torch.dtype) -> None:
    deployed = deploy(rep.to(dtype))
    assert {p.dtype for p in deployed.parameters()} == {dtype}


def test_sync_batch_norm_stays_sync(stock: nn.Module) -> None:
    stock = nn.SyncBatchNorm.convert_sync_batchnorm(stock)
    expanded = expand(stock)
    assert type(expanded.model[1].branch_1x1.bn) is nn.SyncBatchNorm
    assert kinds(deploy(expanded)) == kinds(stock)


def test_blocks_made_by_hand_become_one_convolution() -> None:
    model = randomize_(nn.Sequential(Conv_C3(3, 8, 3, 2), Conv_C3(8, 8))).eval()
    x = torch.rand(1, 3, 9, 9)
    deployed = deploy(model)
    assert_same_outputs(model(x), deployed(x))
    assert [key for key, _ in layout(deployed)] == ["0.conv.weight", "0.conv.bias", "1.conv.weight", "1.conv.bias"]


def test_expand_of_a_model_of_rep_rows_adds_to_them(rep: nn.Module) -> None:
    from ultralytics.nn.tasks import DetectionModel

    rep.double()
    expanded = expand(rep)
    assert set(rep_blocks(rep)) < set(rep_blocks(expanded))
    assert_same_outputs(rep(x := image()), expanded(x))
    assert rep_blocks(DetectionModel(expanded.yaml, verbose=False)) == rep_blocks(expanded)


def test_a_policy_without_a_value_is_none(stock: nn.Module) -> None:
    stock.yaml["rep"] = None  # as YAML reads a key whose lines are commented out
    assert rep_blocks(expand(stock))


def test_evaluating_restores_each_mode(stock: nn.Module) -> None:
    stock.train()
    stock.model[1].eval()
    modes = [m.training for m in stock.modules()]
    with evaluating(stock):
        assert not any(m.training for m in stock.modules())
    assert [m.training for m in stock.modules()] == modes
    with pytest.raises(KeyError), evaluating(stock):
        raise KeyError
    assert [m.training for m in stock.modules()] == modes


def test_stock_convs_are_the_hosts_unfused_ones(stock: nn.Module) -> None:
    names = [name for name, _ in stock_convs(stock)]
    assert names[:3] == ["model.0", "model.1", "model.2.cv1"]
    assert not list(stock_convs(stock.fuse(verbose=False)))


@pytest.mark.parametrize("change", [deploy, expand], ids=["deploy", "expand"])
def test_a_copy_made_in_inference_mode_can_be_trained(change: Any, rep: nn.Module, stock: nn.Module) -> None:
    with torch.inference_mode():
        changed = change(rep if change is deploy else stock)
    assert not any(p.is_inference() for p in (*changed.parameters(), *changed.buffers()))
    outputs = tensors(changed.train()(torch.rand(2, 3, 64, 64)))
    sum(t.sum() for t in outputs).backward()
