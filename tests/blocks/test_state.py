"""State of a `Conv_C3`: stock weights that load into it, copies, pickles."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.blocks.layers import LAYERS, folds, image, layer
from tests.helpers import assert_same, randomize_, run_python
from yolorep import C3, Conv_C3
from yolorep.blocks import BLOCKS, register_block


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


@pytest.mark.parametrize(
    ("saved", "into"),
    [
        ({"identity": "none"}, {}),
        ({"block": "plain"}, {"identity": "none"}),
        ({"identity": "none", "g": 2}, {"g": 2, "identity": "conv"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_fewer_branches_keep_their_function(saved: dict, into: dict, strict: bool) -> None:
    """A branch of which the weights hold nothing is silenced, whatever they hold of the others."""
    trained = nn.Sequential(randomize_(Conv_C3(8, 8, **saved))).eval()
    made = nn.Sequential(randomize_(Conv_C3(8, 8, **into), seed=1)).eval()
    result = made.load_state_dict(trained.state_dict(), strict=strict)
    assert result.missing_keys == result.unexpected_keys == []
    by_name = dict(trained.named_modules())
    for name, norm in made.named_modules():
        if name in by_name and isinstance(norm, nn.BatchNorm2d):
            norm.eps = by_name[name].eps
    x = image(8)
    assert_same(trained(x), made(x))


def test_weights_without_the_kernel_silence_the_branches() -> None:
    """As a host leaves them that makes the kernel itself, of one of other input channels."""
    state = stock_reference(3, 8, 2).state_dict()
    del state["conv.weight"]
    made = randomize_(Conv_C3(4, 8, 3, 2)).eval()
    assert made.load_state_dict(state, strict=False).missing_keys == ["conv.weight"]
    alone = nn.Sequential(made.conv, made.bn, made.act)
    x = image(4)
    assert_same(alone(x), made(x))


def test_a_branch_that_is_partly_there_reports_what_is_missing() -> None:
    state = {k: v for k, v in layer("same").state_dict().items() if k != "branch_1x1.bn.weight"}
    made = Conv_C3(8, 8)
    assert made.load_state_dict(state, strict=False).missing_keys == ["branch_1x1.bn.weight"]
    assert torch.equal(made.branch_1x1.bn.weight, torch.ones(8))
    with pytest.raises(RuntimeError, match=r"Missing key.*branch_1x1\.bn\.weight"):
        Conv_C3(8, 8).load_state_dict(state)


def test_a_branch_without_state_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "doubled", BLOCKS["plain"])  # so that it is taken out again
    del BLOCKS["doubled"]
    register_block("doubled")(lambda site: {"branch_through": nn.Identity(), "branch_1x1": site.conv_bn(1, 0)})
    trained, made = Conv_C3(8, 8, block="doubled").eval(), Conv_C3(8, 8, block="doubled").eval()
    made.load_state_dict(trained.state_dict())
    x = image(8)
    assert torch.equal(trained(x), made(x))


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
