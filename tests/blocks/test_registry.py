"""Blocks by name: what is refused, and what a declaration is enough for."""

from __future__ import annotations

import pytest
from torch import nn

from tests.blocks.layers import folds, image
from tests.helpers import randomize_
from yolorep import C3, BlockError, Bottleneck, Conv_C3
from yolorep.blocks import BLOCKS, register_block
from yolorep.blocks.starts import zero_gain_


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, 8), {"block": "repvg"}, "block 'repvg' is unknown; accepted: .*repvgg"),
        ((8, 8), {"block": ["repvgg"]}, "block .* is unknown"),
        ((8, 8), {"block": "mobileone(6)"}, r"options are written as in 'mobileone\(branches=6\)'"),
        ((8, 8), {"block": "mobileone(branches=six)"}, "branches='six' is not accepted; mobileone takes branches=4"),
        ((8, 8), {"block": "mobileone(branches=2 + 2)"}, "options are written as"),
        (
            (8, 8),
            {"block": "csla(scales=1)"},
            r"scales=1 is not accepted; csla takes .*scales=constant\|learned",
        ),
        ((8, 8), {"block": "csla(scales=none)"}, "scales='none' is not accepted"),
        ((8, 8), {"block": "csla(small='1')"}, "small='1' is not accepted"),
        ((8, 8), {"block": "csla(small=0.0)"}, "small=0.0 is not accepted"),
        ((8, 8), {"block": "csla(small=1e400)"}, "small=inf is not accepted"),
        ((8, 8), {"block": "csla(small=True)"}, "small=True is not accepted"),
        ((8, 8), {"block": "mobileone(branches=6"}, "options are written as"),
        ((8, 8), {"block": "mobileone(branches=6)()"}, "options are written as"),
        ((8, 8), {"block": "mobileone(branches=6, branches=2)"}, "options are written as"),
        ((8, 8), {"block": "orepa(expansion=0)"}, "expansion=0 is not accepted; orepa takes expansion=8"),
        ((8, 8), {"block": "mobileone(branches=True)"}, "branches=True is not accepted; mobileone takes branches=4"),
        ((8, 8), {"block": "mobileone(branches=0)"}, "branches=0 is not accepted"),
        ((8, 8), {"block": "mobileone(k=6)"}, "k=6 is not accepted; mobileone takes branches=4"),
        ((8, 8), {"block": "repvgg(k=6)"}, "k=6 is not accepted; repvgg takes no option"),
        ((8, 8, 7), {"block": "replk(small=4)"}, "accepted: an odd kernel size"),
        ((8, 8), {"identity": "mean"}, "identity 'mean' is unknown; accepted: auto, paper, conv, average"),
        ((8, 8), {"identity": None}, "identity None is unknown"),
        ((8, 8, 2), {}, r"\(2, 2\) convolution .* accepted: odd kernels"),
        ((8, 8, 4, 2), {"identity": "none"}, "odd kernels"),
        ((8, 8, 3, 1, 0), {}, r"padding \(0, 0\)"),
        ((8, 16, 3, 1, 2), {"identity": "select"}, "needs 'same' padding"),
        ((8, 8), {"act": "relu"}, r"act='relu' is not an activation; accepted: True \(SiLU\(\)\), False, a module"),
        ((8, 8), {"act": 1}, "act=1 is not"),
        ((8, 8), {"act": nn.ReLU}, "is not an activation"),
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


@pytest.mark.parametrize("k", [3, (3,), (1, 3, 3), (1, 4), (1, -3), ((1, 1), (3, 3)), "13", None], ids=str)
@pytest.mark.parametrize("kind", [Bottleneck, C3])
def test_wrong_kernel_sizes_are_block_errors(kind: type, k: object) -> None:
    with pytest.raises(BlockError, match=r"^k must be two odd kernel sizes, such as \(1, 3\); got "):
        kind(8, 8, k=k, block="plain")


def test_names_hosts_attach_are_free() -> None:
    """`i`, `f`, `type` and `np` are set on each layer by the hosts; a child of that name would be a TypeError."""
    for block in BLOCKS:
        made = Conv_C3(8, 16, block=block)
        assert not {"i", "f", "type", "np"} & {name for module in made.modules() for name, _ in module.named_children()}


@pytest.mark.parametrize("written", ["learned", "'learned'", '"learned"'])
def test_a_text_may_be_written_without_quotes(written: str) -> None:
    made = Conv_C3(8, 8, block=f"csla(scales={written}, small=2)")
    assert float(made.branch_1x1.scale.weight.detach().mean()) == 2
    assert isinstance(made.branch_1x1.scale.weight, nn.Parameter)


def test_an_option_that_is_a_text_lists_its_choices() -> None:
    def declare(site: object, *, kind: str = "a") -> dict[str, nn.Module]:
        return {}

    with pytest.raises(BlockError, match=r"'kind' is a text without choices; accepted: .*Literal\['a', "):
        register_block("texts")(declare)


def test_register_block_refuses_a_taken_name() -> None:
    with pytest.raises(BlockError, match="'repvgg' is already registered, by"):
        register_block("repvgg")(lambda site: {})


@pytest.mark.parametrize(
    "branch", [nn.Identity(), nn.Sequential(nn.AvgPool2d(3, 1, 1)), nn.BatchNorm2d(8, affine=False)]
)
def test_a_branch_that_cannot_be_silenced_is_a_block_error(branch: nn.Module) -> None:
    with pytest.raises(BlockError, match=r"^a branch \(\w+\) has no gain to silence it by: "):
        zero_gain_(branch)


def test_a_new_block_is_a_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "two", BLOCKS["plain"])  # so that it is taken out again
    del BLOCKS["two"]
    register_block("two")(lambda site: {f"branch_{i}": site.conv_bn(site.conv.kernel_size, 1) for i in range(2)})
    folds(randomize_(Conv_C3(8, 16, 3, 2, block="two")).eval(), image(8))
