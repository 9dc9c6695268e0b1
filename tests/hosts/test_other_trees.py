"""`fuse` of other YOLO trees: yolorep folds their blocks, then the tree goes on as it does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.foreign import lookalikes as like
from tests.helpers import assert_same, randomize_, relative_error
from yolorep.foreign import foreign_blocks
from yolorep.hosts import other_trees
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.yolov5 import model_hooks

C = 8


class Model(nn.Module):
    """A model of a YOLOv7 tree: a grouped block, which its own fold gets wrong, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = like.RepConv(C, C, g=2), like.IDetect((C,))
        self.own_fuses = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head([self.block(x)])[0]

    def fuse(self) -> Model:
        self.own_fuses += 1
        if not hasattr(self.block, "rbr_reparam"):
            self.block.fuse_repvgg_block()
        self.head.fuse()
        self.head.forward = self.head.fuseforward
        return self


def yolov7_tree() -> tuple[ModuleType, Callable[[nn.Module], nn.Module]]:
    tree = ModuleType("models.yolo")
    tree.Model, tree.IDetect = type("Model", (Model,), {"fuse": Model.fuse}), like.IDetect
    tree.parse_model = None
    return tree, lambda model: model.fuse()


def yolov5_lite_tree() -> tuple[ModuleType, Callable[[nn.Module], nn.Module]]:
    tree, fuse = yolov7_tree()
    del tree.IDetect
    tree.RepVGGBlock = like.RepVGGBlock
    return tree, fuse


def yolov6_tree() -> tuple[ModuleType, Callable[[nn.Module], nn.Module]]:
    tree = ModuleType("yolov6.utils.torch_utils")
    tree.Model, tree.fuse_model = Model, lambda model: model.fuse()
    return tree, lambda model: tree.fuse_model(model)


@pytest.mark.parametrize("make", [yolov7_tree, yolov5_lite_tree, yolov6_tree])
@pytest.mark.parametrize("training", [False, True])
def test_fuse_folds_first(make: Callable[[], tuple], training: bool) -> None:
    tree, fuse = make()
    model, x = randomize_(tree.Model()).eval(), torch.randn(2, C, 9, 9)
    expected = model(x)
    hooks: Hooks = (model_hooks if tree.__name__ == "models.yolo" else other_trees).attach(tree)
    try:
        fused = fuse(model.train(training))
    finally:
        hooks.remove()
    assert fused.own_fuses == 1
    assert fused.training is training
    assert foreign_blocks(fused) == []
    assert_same(expected, fused.eval()(x))


def test_what_has_imported_the_function_already_is_hooked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As YOLOv6's `checkpoint` has, where yolorep is imported last."""
    tree, _ = yolov6_tree()
    importer = ModuleType("yolov6.utils.checkpoint")
    before = importer.fuse_model = tree.fuse_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, importer.__name__, importer)
    model, x = randomize_(Model()).eval(), torch.randn(2, C, 9, 9)
    expected = model(x)
    hooks = other_trees.attach(tree)
    assert_same(expected, importer.fuse_model(model)(x))
    hooks.remove()
    assert importer.fuse_model is before


def test_without_the_hook_the_tree_is_wrong() -> None:
    model, x = randomize_(Model()).eval(), torch.randn(2, C, 9, 9)
    expected = model(x)
    assert relative_error(expected, model.fuse()(x)) > 1e-3


@pytest.mark.parametrize("name", ["models.yolo", "yolov6.utils.torch_utils"])
def test_another_module_of_that_name_is_left_alone(name: str) -> None:
    assert not other_trees.attach(ModuleType(name))
