"""A user's declaration that cannot work is refused when a block is built, by the names of block and branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from yolorep import BlockError, Conv_C3, deploy, expand
from yolorep.blocks import BLOCKS, Site, register_block
from yolorep.blocks.linear import Scale
from yolorep.errors import DeclarationError


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Doubled(nn.Conv2d):
    """A convolution whose class overrides `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _norm(site: Site) -> nn.Module:
    return site.batch_norm(site.conv.out_channels)


def _relu(site: Site) -> nn.Module:
    return site.sequence(conv=site.convolution(1, site.border), act=nn.ReLU(), bn=_norm(site))


def _no_stride(site: Site) -> nn.Module:
    return site.sequence(conv=nn.Conv2d(site.conv.in_channels, site.conv.out_channels, 1, bias=False), bn=_norm(site))


def _no_padding(site: Site) -> nn.Module:
    return site.sequence(conv=site.convolution(3), bn=_norm(site))


def _channels(site: Site) -> nn.Module:
    return nn.Conv2d(site.conv.in_channels, 3, 1, site.conv.stride, bias=False)


def _pool_after_bias(site: Site) -> nn.Module:
    return site.sequence(conv=site.convolution(1, site.border), bn=_norm(site), pool=nn.AvgPool2d(3, 1, 1))


def _norm_of_other_channels(site: Site) -> nn.Module:
    return site.sequence(conv=site.convolution(1, site.border), bn=nn.BatchNorm2d(3))


# the branches, the law, and the message about them
WRONG: dict[str, tuple[Callable[[Site], Any], str, str]] = {
    "prefix": (lambda site: {"vertical": site.conv_bn(1, site.border)}, "each", "'vertical' is no name of a branch"),
    "dense": (lambda site: {"dense_gain": site.scale(1)}, "each", "'dense_gain' is no name .* law 'each': branch_"),
    "dot": (lambda site: {"branch_a.b": site.scale(1)}, "sum", r"'branch_a.b' is no name .*: branch_\* and dense_\*"),
    "number": (lambda site: {1: site.scale(1)}, "each", "1 is no name of a branch"),
    "no end": (lambda site: {"branch_": site.scale(1)}, "each", "'branch_' is no name of a branch"),
    "list": (lambda site: [site.scale(1)], "each", "its declaration returns a list; accepted: layers by name"),
    "none": (lambda site: None, "each", "its declaration returns None, as a function without return does; accepted"),
    "no layer": (lambda site: {"branch_a": 3}, "each", "its declaration returns int as 'branch_a'; accepted"),
    "raises": (
        lambda site: {"branch_a": site.nothing},
        "each",
        r"its declaration raises AttributeError: .*nothing'? \(test_declarations.py, line \d+\)$",
    ),
    "relu": (lambda site: {"branch_a": _relu(site)}, "each", "branch_a does not fold: act: ReLU"),
    "own layer": (lambda site: {"branch_a": Plain()}, "each", "branch_a does not fold: .*Plain"),
    "own forward": (lambda site: {"branch_a": Doubled(8, 8, 1, 2)}, "each", "branch_a folds to another function"),
    "stride": (lambda site: {"branch_a": _no_stride(site)}, "each", r"branch_a gives \(1, 8, 9, 10\) where .*stride"),
    "padding": (
        lambda site: {"branch_a": _no_padding(site)},
        "each",
        r"branch_a gives \(1, 8, 4, 4\) where the dense .* as site.conv_bn\(size, site.padding_of\(size\)\) gives it",
    ),
    "channels": (lambda site: {"branch_a": _channels(site)}, "sum", r"branch_a gives \(1, 3, 5, 5\) where the dense"),
    "norm": (
        lambda site: {"branch_a": _norm_of_other_channels(site)},
        "each",
        "branch_a (does not fold|cannot be run)",
    ),
    "border": (  # exact only as long as the batch norm is fresh
        lambda site: {"branch_a": _pool_after_bias(site)},
        "each",
        "branch_a does not fold: pool: a zero-padded kernel follows",
    ),
    "dense path": (lambda site: {"dense_a": nn.Conv2d(8, 8, 3)}, "sum", r"dense_a gives \(1, 8, 3, 3\) where"),
    "dense relu": (lambda site: {"dense_a": nn.ReLU()}, "online", "dense_a does not fold: .*ReLU"),
}


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    yield
    for name in ("mine", "fits", "refuses"):
        BLOCKS.pop(name, None)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_declaration_names_block_and_branch(wrong: str) -> None:
    declare, law, says = WRONG[wrong]
    register_block("mine", law=law)(declare)
    with pytest.raises(DeclarationError, match=f"^block 'mine': .*{says}|^block 'mine': {says}"):
        Conv_C3(8, 8, 3, 2, block="mine")


def test_expand_does_not_pass_over_a_wrong_declaration(stock: nn.Module) -> None:
    """Layers that a declaration refuses are left without branches."""
    register_block("mine")(lambda site: {"branch_a": _no_stride(site)})
    with pytest.raises(DeclarationError, match="block 'mine': branch_a gives"):
        expand(stock, "mine")

    @register_block("refuses")
    def refuses(site: Site) -> dict[str, nn.Module]:
        if site.conv.stride != (1, 1):
            raise BlockError("strided")
        return {"branch_a": _no_stride(site)} if not site.pointwise else {}

    assert expand(stock, "refuses") is not stock


def test_a_kernel_larger_than_a_layer_of_a_host_does_not_fit_it(stock: nn.Module) -> None:
    """Deploying restores the host's layer, whose YAML says the size of its kernel."""
    register_block("mine")(lambda site: {"branch_a": site.conv_bn(3, site.padding_of(3))})
    deployed = deploy(expand(stock, "mine").eval())
    shapes = {name: value.shape for name, value in stock.state_dict().items()}
    assert shapes == {name: value.shape for name, value in deployed.state_dict().items()}
    with pytest.raises(BlockError, match=r"^model.2.cv1: block 'mine': branch_a makes the 1x1 kernel a 3x3 one, so"):
        expand(stock, "mine", select="model.2.cv1")
    by_hand = Conv_C3(8, 8, 1, block="mine").eval()  # becomes one convolution, of any size
    assert deploy(by_hand).conv.kernel_size == (3, 3)


@pytest.mark.parametrize("law", ["each", "sum", "online"])
def test_a_declaration_that_fits_is_taken(law: str) -> None:
    @register_block("fits", law=law)
    def fits(site: Site, *, gain: float = 2.0) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {
            "branch_a": site.sequence(conv=site.convolution(1, site.border), s=Scale(8, gain))
        }
        return layers if law == "each" else {**layers, "dense_gain": site.scale(gain)}

    assert "branch_a" in dict(Conv_C3(8, 8, 3, 2, block="fits").branches())


def test_options_need_defaults_and_names_are_words() -> None:
    with pytest.raises(BlockError, match="block 'mine': its option 'thick' has no default; accepted: thick=VALUE"):
        register_block("mine")(lambda site, thick: {})
    for name in ("my-block", "", "a b", 3):
        with pytest.raises(BlockError, match="is no name; accepted: letters"):
            register_block(name)(lambda site: {})  # type: ignore[arg-type]
    with pytest.raises(BlockError, match=r"is given no name; accepted: @register_block\('mine'\)"):

        @register_block  # type: ignore[arg-type]
        def mine(site: Site) -> dict[str, nn.Module]:
            return {}
