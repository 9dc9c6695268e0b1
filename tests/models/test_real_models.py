"""Models as people have them: weights read from outside, pruned, without affine batch norms, used before, threaded."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from tests.helpers import assert_same, randomize_
from yolorep import C3, BlockError, Conv_C3, FoldError, HostError, deploy, expand, verify
from yolorep.blocks.registry import BLOCKS
from yolorep.deployment import deployed
from yolorep.stock_layers import rep_blocks


class Shared(nn.Module):
    """A layer that runs the weights of its convolution at two dilations, as DocLayout-YOLO's does."""

    def __init__(self, cv: nn.Module, called: bool) -> None:
        super().__init__()
        self.cv, self.called = cv, called

    def forward(self, x: Tensor) -> Tensor:
        first = self.cv(x) if self.called else self.dilated(x, 1)
        return first + self.dilated(x, 2)

    def dilated(self, x: Tensor, d: int) -> Tensor:
        y = F.conv2d(x, self.cv.conv.weight, self.cv.conv.bias, padding=d, dilation=d)
        return self.cv.act(self.cv.bn(y))


class Detached(Shared):
    """The same through a name that shows no parameter to the convolution."""

    def dilated(self, x: Tensor, d: int) -> Tensor:
        return F.conv2d(x, self.cv.conv.weight.detach() * 2, padding=d, dilation=d)


@pytest.fixture
def conv() -> Any:
    """An expanded stock layer of ultralytics, with branches that matter."""
    module = pytest.importorskip("ultralytics.nn.modules.conv")
    layer = expand(nn.Sequential(module.Conv(8, 8, 3)))
    return randomize_(layer)[0]


@pytest.mark.parametrize("reader", [Shared, Detached])
def test_block_that_is_called_and_read_is_left(reader: Callable[..., nn.Module], conv: nn.Module) -> None:
    model, x = nn.Sequential(reader(conv, called=True), Conv_C3(8, 8)).eval(), torch.rand(1, 8, 9, 9)
    with pytest.warns(UserWarning, match=r"0\.cv: Conv_C3 is left as it is: another layer computes with its weights"):
        after = deploy(model)
    assert_same(model(x), after(x))
    assert rep_blocks(after) == ["0.cv"], "the other block is folded"


@pytest.mark.parametrize("reader", [Shared, Detached])
def test_block_that_is_read_and_never_called_loses_its_branches(
    reader: Callable[..., nn.Module], conv: nn.Module
) -> None:
    model, x = nn.Sequential(reader(conv, called=False)).eval(), torch.rand(1, 8, 9, 9)
    with pytest.warns(UserWarning, match=r"0\.cv: its branches are removed unfolded: another layer runs"):
        after = deploy(model)
    assert_same(model(x), after(x))
    assert type(after[0].cv).__name__ == "Conv"


def test_block_without_a_stock_layer_that_is_read_and_never_called_is_left() -> None:
    model, x = randomize_(nn.Sequential(Shared(Conv_C3(8, 8), called=False))).eval(), torch.rand(1, 8, 9, 9)
    with pytest.warns(UserWarning, match="left as it is: another layer computes with its weights"):
        after = deploy(model)
    assert_same(model(x), after(x))


def test_reading_a_shape_is_no_computation(conv: nn.Module) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cv = conv

        def forward(self, x: Tensor) -> Tensor:
            return self.cv(x.to(self.cv.conv.weight.dtype)) * self.cv.conv.weight.shape[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rep_blocks(deploy(nn.Sequential(Looks()).eval())) == []


def test_search_for_readers_leaves_the_model_as_it_was(rep: nn.Module) -> None:
    """A detection head keeps the grid of the last image, and a hook of the user's sees one forward that is not his."""
    kept = [dict(vars(module)) for module in rep.modules()]
    statistics = copy.deepcopy(rep.state_dict())
    deployed(rep)
    for module, before in zip(rep.modules(), kept, strict=True):
        assert vars(module).keys() == before.keys()
    assert all(torch.equal(a, b) for a, b in zip(statistics.values(), rep.state_dict().values(), strict=True))


def test_search_for_readers_restores_lists_that_a_forward_changes() -> None:
    """As YOLOv5's head keeps its grids."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.grid = Conv_C3(4, 4), [torch.empty(0)]

        def forward(self, x: Tensor) -> Tensor:
            self.grid[0] = x
            return self.block(x)

    model = nn.Sequential(Head()).eval()
    assert deploy(model)[0].grid[0].numel() == 0
    assert model[0].grid[0].numel() == 0


def pruned(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    prune.l1_unstructured(model.model[3].conv, "weight", 0.3)
    return model


@pytest.mark.parametrize("call", [expand, deploy])
def test_model_with_a_pruning_mask_is_refused_with_the_cure(call: Callable, stock: nn.Module) -> None:
    with pytest.raises(
        HostError, match=r"model\.3\.conv\.weight is pruned with a mask; .*prune\.remove\(model\.3\.conv"
    ):
        call(pruned(stock))


def test_pruned_block_is_refused_in_place_and_by_fuse(rep: nn.Module) -> None:
    for call in (lambda model: deploy(model, inplace=True), lambda model: model.fuse(verbose=False)):
        with pytest.raises(FoldError, match=r"model\.3\.conv: Conv2d has forward hooks.*prune\.remove"):
            call(pruned(rep))


def test_pruning_that_was_made_permanent_is_folded(rep: nn.Module) -> None:
    model, x = pruned(rep), torch.rand(1, 3, 64, 64)
    prune.remove(model.model[3].conv, "weight")
    assert_same(model(x)[0], deploy(model)(x)[0])


@pytest.mark.parametrize("block", sorted(set(BLOCKS) - {"plain", "twin"}))  # twin divides these weights
def test_batch_norms_without_affine_weights_fold(block: str) -> None:
    module = pytest.importorskip("ultralytics.nn.modules.conv")
    layer = module.Conv(8, 8, 5)
    layer.bn = nn.BatchNorm2d(8, affine=False)
    model, x = randomize_(expand(randomize_(nn.Sequential(layer)).eval(), block)).eval(), torch.rand(2, 8, 9, 9)
    after = deploy(model)
    assert type(after[0]) is module.Conv
    assert after[0].bn.weight is None
    assert_same(model(x), after(x))


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_a_twin_needs_weights_and_statistics(options: dict[str, bool]) -> None:
    layer = pytest.importorskip("ultralytics.nn.modules.conv").Conv(8, 8, 3)
    layer.bn = nn.BatchNorm2d(8, **options)
    with pytest.raises(BlockError, match="0: start split divides the gain of a batch norm with a weight and recorded"):
        expand(nn.Sequential(layer), "twin")


def test_block_that_starts_from_statistics_says_that_there_are_none() -> None:
    module = pytest.importorskip("ultralytics.nn.modules.conv")
    layer = module.Conv(8, 8, 3)
    layer.bn = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(BlockError, match=r"0: the batch norm keeps no statistics .*accepted: .*repvgg"):
        expand(nn.Sequential(layer), "qarepvgg")


@pytest.mark.parametrize("place", ["block", "inside a C3"])
def test_subclass_with_another_forward_is_refused(place: str) -> None:
    class Doubled(Conv_C3):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    block: Any = Doubled(8, 8)
    if place != "block":
        block = C3(8, 8)
        block.cv1 = Doubled(8, 4, 1)
    for call in (deploy, lambda model: model[0]._switch_to_deploy()):
        with pytest.raises(FoldError, match=r"Doubled is a Conv_C3 with a forward of its own \(forward\)"):
            call(nn.Sequential(block).eval())


def test_model_that_is_nested_too_deeply_is_one_sentence() -> None:
    model: nn.Module = Conv_C3(3, 3)
    for _ in range(600):
        model = nn.Sequential(model)
    with pytest.raises(HostError, match=r"Sequential cannot be copied: .*recursion"):
        deploy(model)


def test_threads_that_deploy_one_model_in_place_fold_it_once(rep: nn.Module) -> None:
    expected, errors, x = copy.deepcopy(rep), [], torch.rand(1, 3, 64, 64)

    def run() -> None:
        try:
            deploy(rep, inplace=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_same(expected(x)[0], rep(x)[0])
    assert rep_blocks(rep) == []


def test_yolo_is_copied_without_what_cannot_be_copied(stock: nn.Module) -> None:
    """A predictor holds a lock, and a trainer the iterators of its data loaders."""
    ultralytics = pytest.importorskip("ultralytics")
    yolo = ultralytics.YOLO("yolov5n.yaml")
    yolo.model = stock
    yolo.predictor, yolo.trainer = threading.Lock(), iter(torch.utils.data.DataLoader([0], num_workers=1))
    rep = expand(yolo)
    assert rep_blocks(yolo.model) == []
    after = deploy(rep)
    assert len(rep_blocks(rep.model)) == 48
    assert rep_blocks(after.model) == []
    assert after.predictor is None
    assert after.callbacks is not yolo.callbacks or after.callbacks == yolo.callbacks
    assert yolo.predictor is not None
    assert verify(rep, after).ok
