"""Expand and deploy over ultralytics' own YOLOv5: same function, same layers, all or nothing."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_same_outputs, randomize_
from yolorep import BlockError, Conv_C3, FoldError, HostError, deploy, expand
from yolorep.surgery import evaluating, rep_blocks, stock_convs

STOCK, REP = "yolov5n.yaml", "yolov5n-rep.yaml"
Detector = Callable[[str], nn.Module]


@pytest.fixture
def stock(detector: Detector) -> nn.Module:
    return detector(STOCK)


@pytest.fixture
def rep(detector: Detector) -> nn.Module:
    return detector(REP)


def image(dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 64, 64, dtype=dtype)


def kinds(model: nn.Module) -> Counter:
    return Counter(type(m) for m in model.modules())


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a failed or copying operation must leave alone."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(name, id(m), type(m), m.training) for name, m in model.named_modules()]
    return {"state": state, "modules": modules, "yaml": copy.deepcopy(getattr(model, "yaml", None))}


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    assert before["modules"] == after["modules"]
    assert before["yaml"] == after["yaml"]
    assert all(torch.equal(value, after["state"][key]) for key, value in before["state"].items())


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
    common = pytest.importorskip("ultralytics.nn.modules.conv")
    model = randomize_(expand(common_layer(common), identity="none")).double()
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


def common_layer(conv: Any) -> nn.Sequential:
    return nn.Sequential(conv.Conv(8, 16, 3)).eval()


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


@pytest.mark.parametrize("inplace", [True, False])
def test_a_failed_deploy_leaves_the_whole_model(rep: nn.Module, inplace: bool) -> None:
    rep.model[8].m[0].cv2.branch_identity.train()
    before = snapshot(rep)
    with pytest.raises(FoldError, match=r"^model\.8\.m\.0\.cv2\.branch_identity: .*training mode"):
        deploy(rep, inplace=inplace)
    assert_untouched(before, rep)


def test_deploy_tells_overflow_with_its_path(rep: nn.Module) -> None:
    rep.half()
    nn.init.constant_(rep.model[3].branch_1x1.bn.weight, 6e4)
    nn.init.constant_(rep.model[3].branch_1x1.conv.weight, 6e4)
    with pytest.raises(FoldError, match=r"^model\.3: .*not finite in torch\.float16"):
        deploy(rep)


def test_a_failed_expand_leaves_the_whole_model(stock: nn.Module) -> None:
    """The stem's kernel is even: no 1x1 branch fits beside it."""
    before = snapshot(stock)
    with pytest.raises(BlockError, match=r"^model\.0: a 1x1 branch does not fit .* accepted: odd kernels"):
        expand(stock, select=[1, 0], inplace=True)
    assert_untouched(before, stock)


def sequential(stock: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


NOT_EXPANDED: dict[str, tuple[Callable[[nn.Module], nn.Module], dict[str, Any], str]] = {
    "foreign": (sequential, {}, "Sequential has no convolution layer of ultralytics or YOLOv5; accepted"),
    "fused": (lambda stock: stock.fuse(verbose=False), {}, r"is fused .*expand it before fuse\(\)"),
    "expanded": (expand, {}, r"is already expanded, by {'block': 'repvgg'.*deploy\(\) it first"),
    "expanded-in-part": (lambda stock: expand(stock, select=1), {"select": 3}, "is already expanded"),
    "no-match": (lambda stock: stock, {"select": ["model.99.*"]}, r"select=\['model.99.\*'\] matches none of the"),
    "no-match-index": (lambda stock: stock, {"select": 99}, "select=99 matches none"),
    "no-match-function": (lambda stock: stock, {"select": lambda name, layer: False}, "matches none"),
}


@pytest.mark.parametrize("case", NOT_EXPANDED)
def test_expand_refuses_in_one_sentence(stock: nn.Module, case: str) -> None:
    prepare, options, message = NOT_EXPANDED[case]
    with pytest.raises(HostError, match=message) as caught:
        expand(prepare(stock), **options)
    assert "\n" not in str(caught.value)


def test_expand_of_a_model_of_rep_rows_adds_to_them(rep: nn.Module) -> None:
    from ultralytics.nn.tasks import DetectionModel

    rep.double()
    expanded = expand(rep)
    assert set(rep_blocks(rep)) < set(rep_blocks(expanded))
    assert_same_outputs(rep(x := image()), expanded(x))
    assert rep_blocks(DetectionModel(expanded.yaml, verbose=False)) == rep_blocks(expanded)


@pytest.mark.parametrize("options", [{"block": "x"}, {"identity": "x"}], ids=str)
def test_expand_refuses_unknown_options(stock: nn.Module, options: dict[str, str]) -> None:
    with pytest.raises(BlockError, match="unknown; accepted"):
        expand(stock, **options)


def test_a_policy_that_selects_nothing_is_refused() -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    yaml = {**tasks.yaml_model_load(STOCK), "rep": {"select": ["model.99.*"]}}
    with pytest.raises(BlockError, match=r"rep: select \['model.99.\*'\] matches none of the \d+ stock convolutions"):
        tasks.DetectionModel(yaml, verbose=False)


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
