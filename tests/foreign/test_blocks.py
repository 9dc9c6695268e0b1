"""Each declared block of another project, deployed: the same function, in the form that its project runs."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.foreign import classifiers
from tests.foreign import lookalikes as like
from tests.helpers import assert_same, randomize_
from yolorep import deploy
from yolorep.foreign import foreign_blocks

C = 8
# Each maps 8 channels; the second is the attribute that holds the folded convolution.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "repvgg": (lambda: like.RepVGGBlock(C, C), "rbr_reparam"),
    "repvgg-stride": (lambda: like.RepVGGBlock(C, 16, 2), "rbr_reparam"),
    "repvgg-grouped": (lambda: like.RepVGGBlock(C, C, g=2), "rbr_reparam"),
    "repvgg-depthwise": (lambda: like.RepVGGBlock(C, C, g=C), "rbr_reparam"),
    "yolov7": (lambda: like.RepConv(C, C), "rbr_reparam"),
    "qarepvgg": (lambda: like.QARepVGGBlockV2(C, C), "rbr_reparam"),
    "qarepvgg-stride": (lambda: like.QARepVGGBlockV2(C, 16, 2, 2), "rbr_reparam"),
    "yolov9": (lambda: like.RepConvN(C, 16, 2), "conv"),
    "repvit": (lambda: like.RepVGGDW(C), "conv"),
    "repvit-5x5": (lambda: like.RepVGGDW(C, 5), "conv"),
    "mobileone": (lambda: like.MobileOneBlock(C, C), "reparam_conv"),
    "mobileone-depthwise": (lambda: like.MobileOneBlock(C, C, 3, 2, C), "reparam_conv"),
    "mobileone-pointwise": (lambda: like.MobileOneBlock(C, 16, 1), "reparam_conv"),
    "dbb": (lambda: like.DiverseBranchBlock(C, C), "dbb_reparam"),
    "dbb-5x5-stride": (lambda: like.DiverseBranchBlock(C, 16, 5, 2, 2), "dbb_reparam"),
    "acb": (lambda: like.ACBlock(C, 16), "fused_conv"),
    "acb-cropped": (lambda: like.ACBlock(C, 16, 5, 2, padding=1), "fused_conv"),
    "orepa": (lambda: like.OREPA(C, 16, 2, 2), "orepa_reparam"),
    "mmpretrain-repvgg": (lambda: classifiers.RepVGGBlock(C, C, g=2), "branch_reparam"),
    "mmpretrain-mobileone": (lambda: classifiers.MobileOneBlock(C, 16, 3, 2), "branch_reparam"),
    "replknet": (lambda: classifiers.ReparamLargeKernelConv(C), "lkb_reparam"),
}


@pytest.fixture(params=BLOCKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    make, slot = BLOCKS[request.param]
    return randomize_(make()).eval(), slot


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A block that is left as it is says so by a warning; none of these may."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deployed_block_computes_the_same(case: tuple[nn.Module, str], dtype: torch.dtype) -> None:
    block, slot = case[0].to(dtype), case[1]
    x = torch.randn(2, C, 9, 11, dtype=dtype)
    deployed = deploy(block)
    assert_same(block(x), deployed(x))
    assert isinstance(getattr(deployed, slot), nn.Conv2d)
    assert sum(isinstance(m, nn.Conv2d) for m in deployed.modules()) == 1


def test_deployed_block_is_done_with(case: tuple[nn.Module, str]) -> None:
    block, _ = case
    assert len(foreign_blocks(block)) == 1
    deployed = deploy(block)
    assert foreign_blocks(deployed) == []
    again = deploy(deployed)
    assert again.state_dict().keys() == deployed.state_dict().keys()


def test_deployed_block_copies_and_pickles(case: tuple[nn.Module, str]) -> None:
    x, deployed = torch.randn(1, C, 9, 9), deploy(case[0])
    for copy in (deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(copy(x), deployed(x))


def test_deployed_block_keeps_what_a_host_attached(case: tuple[nn.Module, str]) -> None:
    block, calls = case[0], []
    block.i, block.f, block.type, block.np = 3, -1, "block", 7
    block.register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(block)
    deploy(model, inplace=True)
    assert model[0] is block
    assert (block.i, block.f, block.type, block.np) == (3, -1, "block", 7)
    block(torch.randn(1, C, 9, 9))
    assert calls == [1]


def test_stock_form_trains_and_keeps_statistics() -> None:
    block = randomize_(like.RepConvN(C, 16)).eval()
    deployed = deploy(block).train()
    assert type(deployed) is like.Conv
    assert isinstance(deployed.bn, nn.BatchNorm2d)
    deployed(torch.randn(2, C, 9, 9)).sum().backward()
    assert all(p.grad is not None for p in deployed.parameters())


def test_shared_block_is_folded_once() -> None:
    block = randomize_(like.RepVGGBlock(C, C)).eval()
    model = nn.Sequential(block, block)
    x, deployed = torch.randn(1, C, 9, 9), deploy(model)
    assert deployed[0] is deployed[1]
    assert_same(model(x), deployed(x))


def test_half_precision_block_stays_half() -> None:
    deployed = deploy(randomize_(like.RepVGGBlock(C, C)).half().eval())
    assert {t.dtype for t in deployed.state_dict().values()} == {torch.float16}


@pytest.mark.parametrize("kind", [like.IDetect, like.IAuxDetect])
def test_head_takes_in_implicit_knowledge(kind: type[like.IDetect]) -> None:
    head, x = kind(), [torch.randn(1, c, 5, 5) for c in (8, 16, 12, 20)]
    x = x[: 2 if kind is like.IDetect else 4]
    expected, deployed = head(list(x))[:2], deploy(head)
    for run in (deployed, deployed.fuseforward, lambda x: type(deployed).forward(deployed, x)):
        for one, other in zip(expected, run(list(x))[:2], strict=True):
            assert_same(one, other)
    deployed.fuse()  # as the host does once more
    for one, other in zip(expected, deployed(list(x))[:2], strict=True):
        assert_same(one, other)
    assert foreign_blocks(deployed) == []
