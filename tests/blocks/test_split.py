"""The start `split`: a trained block computes the same, and each of its paths has its share of every tap."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.helpers import randomize_, relative_error
from tests.processes import run
from tests.processes import yolorep as command
from yolorep import BlockError, Conv_C3, deploy, expand
from yolorep.blocks import BLOCKS, Site, register_block
from yolorep.blocks.shares import Split
from yolorep.blocks.starts import start_

SHAPES: dict[str, tuple[Any, ...]] = {
    "same": (8, 8, 3, 1),
    "strided": (8, 12, 3, 2),
    "grouped": (8, 8, 3, 1, None, 2),
    "depthwise": (8, 8, 5, 1, None, 8),
    "dilated": (8, 8, 3, 1, None, 1, 2),
    "flat": (8, 8, (1, 3), 1),
    "pointwise": (8, 8, 1, 1),
    "large": (8, 8, 9, 1),
    "padded": (8, 8, 3, 1, 2),
}
TAKING = ("acb", "csla", "mobileone", "qarepvgg", "qarepvgg_s2", "qarepvgg_s3", "replk", "repvgg", "twin")
# Whose branches all end in a batch norm, or add before one: in training mode they compute what the stock layer does.
BOTH_MODES = ("acb", "csla", "mobileone", "qarepvgg", "replk", "repvgg", "twin")


def trained(block: str, shape: tuple[Any, ...]) -> tuple[Conv_C3, nn.Sequential]:
    """A silent block and the stock layers that it computes, with the values of a trained layer."""
    made = Conv_C3(*shape, act=False, block=block).double()
    stock = randomize_(nn.Sequential(made.conv, made.bn))
    layers = {name: layer for name, layer in made.named_children() if name not in ("conv", "bn", "act")}
    start_("silent", layers, made.bn)
    return made, deepcopy(stock)


@pytest.mark.parametrize("block", TAKING)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_split_block_computes_what_the_trained_layer_computes(block: str, shape: tuple[Any, ...]) -> None:
    made, stock = trained(block, shape)
    x = 3 + 2 * torch.randn(6, 8, 9, 9, dtype=torch.float64)
    split = Split.of(made)
    split.observe(x)
    split.apply_()
    assert relative_error(made.eval()(x), stock.eval()(x)) < 1e-12
    if block in BOTH_MODES:  # the batch is the one that was measured; eps is what remains
        assert relative_error(made.train()(x), stock.train()(x)) < 2e-3


def test_every_path_has_its_share_of_each_tap() -> None:
    made, stock = trained("repvgg", (8, 8, 3, 1))
    split = Split.of(made)
    split.observe(torch.randn(4, 8, 9, 9, dtype=torch.float64))
    split.apply_()
    made.eval()
    slope = stock[1].weight / (stock[1].running_var + stock[1].eps).sqrt()
    whole = stock[0].weight * slope[:, None, None, None]
    kernels = {name: kernel.weight for name, kernel in made.terms()}
    assert split.number == 3
    torch.testing.assert_close(kernels["branch_1x1"], whole[:, :, 1:2, 1:2] / 3)
    torch.testing.assert_close(kernels["branch_identity"].flatten(), whole[:, :, 1, 1].diagonal() / 3)
    torch.testing.assert_close(kernels["dense"][:, :, 0], whole[:, :, 0])


def test_a_frozen_twin_is_no_parameter_and_needs_no_images(stock: nn.Module) -> None:
    model = expand(stock, "twin", select="3x3")
    block = next(module for module in model.modules() if isinstance(module, Conv_C3))
    frozen: Any = block.branch_frozen
    torch.testing.assert_close(frozen.conv.weight, block.conv.weight)
    torch.testing.assert_close(frozen.bn.weight, block.bn.weight)
    assert not [name for name, _ in model.named_parameters() if "frozen.conv" in name]
    x = torch.rand(2, 3, 64, 64)
    assert relative_error(model.eval()(x)[0], stock.eval()(x)[0]) < 1e-5
    assert relative_error(_first(model.train()(x)), _first(stock.train()(x))) < 1e-4
    plain = deploy(model.eval())
    assert relative_error(plain(x)[0], model(x)[0]) < 1e-5
    assert "branch" not in " ".join(plain.state_dict())


def _first(outputs: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def test_a_model_keeps_its_function_and_its_statistics(stock: nn.Module) -> None:
    x = torch.rand(4, 3, 64, 64)
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    model = expand(stock, start="split", images=[x, x])
    assert model.yaml["rep"]["start"] == "split"
    assert all(torch.equal(value, before[name]) for name, value in stock.state_dict().items())
    assert relative_error(model.eval()(x)[0], stock.eval()(x)[0]) < 1e-5
    assert relative_error(_first(model.train()(x)), _first(stock.train()(x))) < 2e-2
    gains = [gain.abs().mean() for b in model.modules() if isinstance(b, Conv_C3) for gain in b.gains().values()]  # type: ignore[union-attr]
    assert min(gains) > 0


def test_statistics_are_those_of_cumulative_batch_norms(stock: nn.Module) -> None:
    """Two different batches count the same."""
    made, _ = trained("repvgg", (8, 8, 3, 1))
    split, norm = Split.of(made), nn.BatchNorm2d(8, momentum=None).double()
    for scale in (1, 3):
        x = scale * torch.randn(4, 8, 9, 9, dtype=torch.float64)
        split.observe(x)
        norm(x)
    torch.testing.assert_close(split.statistics["branch_identity"].mean, norm.running_mean)
    torch.testing.assert_close(split.statistics["branch_identity"].var, norm.running_var)


def test_branches_that_take_no_share_are_named(stock: nn.Module) -> None:
    with pytest.warns(UserWarning, match="branch_1x1_kxk, branch_average cannot take a part of a kernel and start sil"):
        model = expand(stock, "dbb", start="split", images=[torch.rand(2, 3, 64, 64)])
    x = torch.rand(1, 3, 64, 64)
    assert relative_error(model.eval()(x)[0], stock.eval()(x)[0]) < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"start": "split"}, "start split measures statistics on images; accepted: yolorep expand IN OUT"),
    "no batch": ({"start": "split", "images": []}, "start split: no image reached model"),
    "other start": ({"images": []}, "images are for start='split', .*; the start is 'silent'"),
    "no batches": ({"start": "split", "images": torch.rand(3, 64, 64)}, "images are batches, tensors of"),
    "no tensors": ({"start": "split", "images": ["a.jpg"]}, "images are batches, tensors of"),
    "size": ({"start": "split", "images": [torch.rand(1, 3, 33, 33)]}, r"cannot be run on \(1, 3, 33, 33\): "),
    "channels": ({"start": "split", "images": [torch.rand(1, 4, 64, 64)]}, "images have 4 channels, the model takes 3"),
}


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_split_is_refused(options: dict[str, Any], says: str, stock: nn.Module) -> None:
    with pytest.raises(BlockError, match=says):
        expand(stock, **options)


def test_a_block_without_any_share_is_refused(stock: nn.Module) -> None:
    def averaged(site: Site) -> dict[str, nn.Module]:
        norm = site.batch_norm(site.conv.out_channels)
        return {"branch_average": site.sequence(pool=nn.AvgPool2d(3, 1, 1), bn=norm)}

    register_block("averaged")(averaged)
    try:
        with pytest.raises(BlockError, match="start split: no branch of averaged takes a part of a kernel; accepted"):
            expand(stock, "averaged", select="*.m.0.cv2", start="split", images=[])
    finally:
        del BLOCKS["averaged"]


@pytest.mark.parametrize("law", ["each", "sum", "online"])
def test_a_branch_of_the_dense_size_takes_its_share_under_every_law(law: str) -> None:
    def doubled(site: Site) -> dict[str, nn.Module]:
        conv = site.convolution(site.conv.kernel_size, site.conv.padding)  # type: ignore[arg-type]
        return {"branch_again": site.sequence(conv=conv, scale=site.scale(1.0))}

    register_block("doubled", law=law)(doubled)
    try:
        made, stock = trained("doubled", (8, 12, 3, 2))
    finally:
        del BLOCKS["doubled"]
    x = torch.randn(6, 8, 9, 9, dtype=torch.float64)
    split = Split.of(made)
    split.observe(x)
    split.apply_()
    assert relative_error(stock.eval()(x), made.eval()(x)) < 1e-12


def test_every_other_block_takes_shares_in_part_or_not_at_all() -> None:
    whole = {name for name in BLOCKS if not Split.of(Conv_C3(8, 8, block=name)).left} - {"plain"}
    assert whole == set(TAKING)


def test_the_command_measures_on_training_images(tiny_dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics").YOLO("yolov5n.yaml").save(str(tmp_path / "stock.pt"))
    printed = command(
        "expand", "stock.pt", "rep.pt", "--start", "split", "--data", tiny_dataset, "--imgsz", 64, cwd=tmp_path
    )
    assert "layers expanded with repvgg" in printed
    for wrong, says in (
        (("--start", "split"), "start split measures statistics on images"),
        (("--data", tiny_dataset), "--data is for --start split"),
        (("--start", "paper"), "--start paper changes what a trained model computes; accepted: silent, split"),
        (("--start", "loud"), "start 'loud' is unknown; accepted: silent, even, paper, split"),
    ):
        refused = command("expand", "stock.pt", "no.pt", *wrong, cwd=tmp_path, code=2)
        assert says in " ".join(refused.split())
        assert not (tmp_path / "no.pt").exists()


@pytest.mark.parametrize(("rep", "said"), [("twin", 1), ({"start": "split"}, 1), ("repvgg", 0)], ids=str)
def test_a_fresh_model_says_that_it_has_no_trained_kernels(rep: Any, said: int, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    code = (
        "import sys, yaml, yolorep; from ultralytics.nn.tasks import DetectionModel as Model\n"
        "d = Model('yolov5n.yaml', verbose=False).yaml\n"
        "for _ in range(2): Model({**d, 'rep': yaml.safe_load(sys.argv[1])}, verbose=False)"
    )
    printed = " ".join(run(code, yaml.safe_dump(rep), cwd=tmp_path).split())
    assert printed.count("start split build on trained kernels") == said
