"""`show`: what it tells of a model's blocks is computed from their kernels, and the model is left as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import yolorep
from tests.helpers import assert_untouched, randomize_, snapshot
from tests.processes import yolorep as command
from yolorep import Conv_C3
from yolorep.blocks import BLOCKS
from yolorep.commands.show import show_model
from yolorep.errors import FoldError, YolorepError
from yolorep.host import has_stock_class
from yolorep.placement import COSTLY
from yolorep.stock_layers import rep_blocks
from yolorep.summary import show

Detector = Callable[[str], nn.Module]
NOT_KNOWN = {COSTLY, "whether mine fits is not known here: its file is not loaded; give it with --plugin"}


def test_every_rep_block_is_shown_and_every_other_convolution_is_accounted_for(rep: nn.Module) -> None:
    summary = show(rep)
    assert [layer.name for layer in summary.layers] == rep_blocks(rep)
    left = [name for one in summary.left for name in one.names]
    others = [name for name, m in rep.named_modules() if has_stock_class(m) and not isinstance(m, Conv_C3)]
    assert sorted(left) == sorted(others)
    assert {one.reason for one in summary.left} >= {"no branch of repvgg fits beside a 6x6 kernel"}


def test_parameters_are_those_of_the_model_and_of_the_deployed_model(rep: nn.Module) -> None:
    summary, deployed = show(rep), yolorep.deploy(rep)
    assert summary.parameters == tuple(sum(p.numel() for p in model.parameters()) for model in (rep, deployed))
    removed = sum(layer.parameters - layer.deployed for layer in summary.layers)
    assert removed == summary.parameters[0] - summary.parameters[1] > 0
    assert summary.modules[0] > summary.modules[1]


@torch.no_grad()
def test_shares_and_gains_are_those_of_the_kernels() -> None:
    """The paper's formula, written out: gamma / sqrt(var + eps) times the kernel, of each branch."""
    block = randomize_(Conv_C3(4, 4)).eval()
    assert isinstance(block.branch_1x1, nn.Sequential)
    norms = {"dense": block.bn, "1x1": block.branch_1x1.bn, "identity": block.branch_identity}
    kernels = {
        "dense": block.conv.weight,
        "1x1": block.branch_1x1.conv.weight,
        "identity": torch.eye(4)[..., None, None],
    }
    scaled = {
        n: kernels[n] * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
        for n, norm in norms.items()
    }
    whole = scaled["dense"] + sum(nn.functional.pad(scaled[name], (1, 1, 1, 1)) for name in ("1x1", "identity"))
    (layer,) = show(nn.Sequential(block)).layers
    assert [branch.name for branch in layer.paths] == ["dense", "1x1", "identity"]
    for path in layer.paths:
        assert path.share == pytest.approx(float(scaled[path.name].norm() / whole.norm()), rel=1e-5)
        assert path.gamma == pytest.approx(float(norms[path.name].weight.abs().mean()), rel=1e-6)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_terms_of_every_block_add_up_to_its_kernel(name: str) -> None:
    block = randomize_(Conv_C3(8, 8, 7 if name == "replk" else 3, g=8 if name == "replk" else 1, block=name)).eval()
    x = torch.rand(1, 8, 9, 9, dtype=torch.float64)
    whole = block.linear_kernel()
    added = sum(_linear(kernel, x) for _, kernel in block.terms())
    torch.testing.assert_close(added, _linear(whole, x), rtol=1e-9, atol=1e-9)
    assert list(block.gains()) == [term for term, _ in block.terms()]


def _linear(kernel: object, x: torch.Tensor) -> torch.Tensor:
    k = kernel.over(8)  # type: ignore[attr-defined]
    return nn.functional.conv2d(x, k.weight.double(), None, k.stride, k.padding, k.dilation, k.groups)


def test_it_says_that_branches_never_moved_until_they_move(stock: nn.Module) -> None:
    model = yolorep.expand(stock)
    blocks = len(rep_blocks(model))
    assert f"the branches of {blocks} of {blocks} blocks add nothing" in str(show(model))
    first, second = (model.get_submodule(name) for name in rep_blocks(model)[:2])
    with torch.no_grad():
        for block, gain in ((first, 1.0), (second, 1e-4)):
            for norm in (m for branch in dict(block.branches()).values() for m in branch.modules()):  # type: ignore[operator]
                if isinstance(norm, nn.BatchNorm2d):
                    norm.weight.fill_(gain)
    summary = show(model)
    assert (len(summary.silent), [layer.name for layer in summary.faint]) == (blocks - 2, [rep_blocks(model)[1]])
    assert f"{blocks - 2} of {blocks} blocks add nothing" in str(summary)
    assert f"1 of {blocks} blocks add less than 1%" in str(summary)


def test_a_trained_start_has_no_finding(rep: nn.Module) -> None:
    assert show(rep).findings() == ()
    assert "note:" not in str(show(rep))


@pytest.mark.parametrize(
    ("form", "says"), [("stock", "stock: nothing asks"), ("fused", "fused: no batch norm is left")]
)
def test_a_model_without_rep_blocks_says_why(form: str, says: str, stock: nn.Module) -> None:
    summary = show(stock if form == "stock" else stock.fuse())  # type: ignore[operator]
    assert summary.layers == ()
    assert "no rep blocks" in str(summary)
    assert says in str(summary)


def test_reasons_of_layers_that_are_left_alone(detector: Detector) -> None:
    stock = detector("yolo11n.yaml")
    reasons = [one.reason for one in show(yolorep.expand(stock)).left]
    assert any("depthwise or in an attention" in reason for reason in reasons)
    assert any("a branch would copy it" in reason for reason in reasons)
    assert {one.reason for one in show(yolorep.expand(stock, select=3)).left} == {"not selected"}
    stock.model[3].attention = nn.Identity()  # type: ignore[index, union-attr]
    assert ("model.3",) in [one.names for one in show(stock).left if one.reason.startswith("edited: ")]


def test_reasons_are_true_where_the_block_of_the_checkpoint_is_not_registered(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLOCKS, "mine", BLOCKS["acb"])
    rep = yolorep.expand(detector("yolo11n.yaml"), block="mine")
    told = {name: left.reason for left in show(rep).left for name in left.names}
    monkeypatch.delitem(BLOCKS, "mine")
    here = {name: left.reason for left in show(rep).left for name in left.names}
    assert any("depthwise" in reason for reason in here.values())
    assert any("its file is not loaded" in reason for reason in here.values())
    for name, reason in here.items():
        assert reason == told[name] or (told[name].startswith("no branch of mine fits") and reason in NOT_KNOWN)


def test_the_hosts_own_rep_blocks_are_named(detector: Detector) -> None:
    reasons = [one.reason for one in show(detector("yolov9t.yaml")).left]
    assert "RepConv of the host, which its own fuse() folds" in reasons


def test_blocks_of_other_projects_are_shown() -> None:
    from timm.models.byobnet import MobileOneBlock  # type: ignore[import-untyped]

    model = nn.Sequential(MobileOneBlock(8, 8, 3)).eval()
    (layer,) = show(model).layers
    assert (layer.name, layer.block, layer.problem) == ("0", "MobileOneBlock", None)
    assert layer.deployed < layer.parameters


def test_the_model_is_left_as_it_is(rep: nn.Module) -> None:
    rep.train()
    before = snapshot(rep)
    show(rep)
    assert_untouched(before, rep)


def test_a_block_that_does_not_fold_is_named() -> None:
    model = nn.Sequential(Conv_C3(4, 4))
    model[0].bn.register_forward_hook(lambda *args: None)
    with pytest.raises(FoldError, match=r"^0\.bn: .*hooks"):
        show(model)


def test_the_command_writes_table_json_and_picture(tmp_path: Path) -> None:
    from PIL import Image

    printed = command("show", "yolov5n-rep.yaml", "--json", "a.json", "--png", "a.png", cwd=tmp_path)
    assert "28 rep blocks, 41 convolutions without branches" in " ".join(printed.split())
    record = json.loads((tmp_path / "a.json").read_text())
    assert (len(record["layers"]), record["layers"][0]["paths"][1]["name"]) == (28, "1x1")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 400
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_json_for_the_screen_is_all_that_is_printed(rep: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": yolorep.deploy(rep)}, tmp_path / "deployed.pt")
    record = json.loads(command("show", "deployed.pt", "--json", "-", cwd=tmp_path))
    assert (record["layers"], record["findings"]) == ([], [])


@pytest.mark.parametrize("what", ["nothing", "none.pt", "none.yaml", "repvgg"])
def test_what_is_no_model_is_refused_in_one_sentence(what: str) -> None:
    from rich.console import Console

    with pytest.raises(YolorepError, match=what) as caught:
        show_model(what, console=Console(quiet=True))
    assert "\n" not in str(caught.value)
