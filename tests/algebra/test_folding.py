"""`fold` against the forward pass of torch, for every registered layer and for nests of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.helpers import assert_same, randomize_, relative_error
from yolorep import FoldError, fold
from yolorep.blocks import BNPad2d, ChannelMap, Sum

DTYPES = (torch.float64, torch.float32)


def conv(cin: int, out: int, size: int | tuple[int, int] = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(cin, out, size, **options)


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def no_affine(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


# Each maps 6 channels; the names are the test's ids.
FOLDED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: conv(6, 8),
    "conv-without-bias": lambda: conv(6, 8, bias=False),
    "conv-same": lambda: conv(6, 8, 3, padding="same", dilation=2),
    "conv-same-rectangular": lambda: conv(6, 8, (1, 5), padding="same"),
    "conv-valid": lambda: conv(6, 8, 3, padding="valid"),
    "conv-even": lambda: conv(6, 8, 4, stride=2, padding=1),
    "conv-rectangular": lambda: conv(6, 8, (3, 1), stride=(2, 1), padding=(1, 2), dilation=(1, 3)),
    "conv-grouped": lambda: conv(6, 9, 3, groups=3),
    "conv-reflect": lambda: conv(6, 8, 3, padding=1, padding_mode="reflect"),
    "conv-replicate": lambda: conv(6, 8, 3, padding=(2, 1), padding_mode="replicate"),
    "conv-circular": lambda: conv(6, 8, 3, padding=1, padding_mode="circular"),
    "batch-norm": lambda: nn.BatchNorm2d(6),
    "batch-norm-no-affine": lambda: no_affine(6),
    "sync-batch-norm": lambda: nn.SyncBatchNorm(6),
    "bn-pad": lambda: BNPad2d(nn.BatchNorm2d(6), 2),
    "bn-pad-no-affine": lambda: BNPad2d(nn.BatchNorm2d(6, affine=False), 1),
    "conv-bn": lambda: seq(conv(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
    "conv-bias-bn": lambda: seq(conv(6, 8, 3, padding=1), nn.BatchNorm2d(8)),
    "conv-no-affine": lambda: seq(conv(6, 8, 3, padding=1), no_affine(8)),
    "depthwise-bn": lambda: seq(conv(6, 6, 3, groups=6), nn.BatchNorm2d(6)),
    "finer-groups-first": lambda: seq(conv(6, 12, 3, groups=6, bias=False), conv(12, 18, 3, groups=3)),
    "finer-groups-second": lambda: seq(conv(6, 12, 3, groups=3, bias=False), conv(12, 18, 3, groups=6)),
    "bn-conv": lambda: seq(nn.BatchNorm2d(6), conv(6, 8, 3)),
    "bn-conv-reflect": lambda: seq(nn.BatchNorm2d(6), conv(6, 8, 3, padding=1, padding_mode="reflect")),
    "identity-conv": lambda: seq(nn.Identity(), conv(6, 8)),
    "empty-then-conv": lambda: seq(seq(), conv(6, 8)),
    "dropout-conv": lambda: seq(nn.Dropout(0.5), conv(6, 8), nn.Dropout2d(0.5)),
    "average-conv": lambda: seq(nn.AvgPool2d(3, 2), conv(6, 8, 1)),
    "average-padded-conv": lambda: seq(nn.AvgPool2d(3, 1, padding=1), conv(6, 8, 1)),
    "average-uncounted-unpadded": lambda: seq(nn.AvgPool2d(3, count_include_pad=False), conv(6, 8, 1)),
    "average-divisor": lambda: seq(nn.AvgPool2d(2, divisor_override=3), conv(6, 8, 1)),
    "average-rectangular": lambda: seq(nn.AvgPool2d((2, 3), (2, 1)), conv(6, 8, 1)),
    "two-averages": lambda: seq(seq(nn.AvgPool2d(2), nn.Identity(), nn.AvgPool2d(2)), conv(6, 8, 1)),
    "conv-average": lambda: seq(conv(6, 8, 1), nn.BatchNorm2d(8), nn.AvgPool2d(3)),
    "1x1-kxk": lambda: seq(conv(6, 8, 1), nn.BatchNorm2d(8), conv(8, 4, 3), nn.BatchNorm2d(4)),
    "1x1-kxk-padded": lambda: seq(conv(6, 8, 1, bias=False), conv(8, 4, 3, padding=1)),
    "1x1-bn-pad-kxk": lambda: seq(
        conv(6, 8, 1, bias=False), BNPad2d(nn.BatchNorm2d(8), 1), conv(8, 4, 3), nn.BatchNorm2d(4)
    ),
    "1x1-bn-pad-kxk-strided": lambda: seq(
        conv(6, 8, 1, bias=False), BNPad2d(nn.BatchNorm2d(8), 2), conv(8, 4, 5, stride=2)
    ),
    "1x1-bn-pad-average": lambda: seq(
        conv(6, 8, 1, bias=False), BNPad2d(nn.BatchNorm2d(8), 1), nn.AvgPool2d(3, 1), nn.BatchNorm2d(8)
    ),
    "1x1-padded-first": lambda: seq(conv(6, 8, 1, padding=1), nn.BatchNorm2d(8), conv(8, 4, 3), nn.BatchNorm2d(4)),
    "1x1-kxk-grouped": lambda: seq(
        conv(6, 12, 1, groups=2, bias=False), BNPad2d(nn.BatchNorm2d(12), 1), conv(12, 8, 3, groups=2)
    ),
    "kxk-1x1": lambda: seq(conv(6, 8, 3, padding=1), nn.BatchNorm2d(8), conv(8, 4, 1), nn.BatchNorm2d(4)),
    "depthwise-separable": lambda: seq(conv(6, 6, 3, groups=6, padding=1), nn.BatchNorm2d(6), conv(6, 4, 1)),
    "channel-average": lambda: seq(ChannelMap(6, 4, "average", stride=2), nn.BatchNorm2d(4)),
    "channel-interpolate": lambda: seq(ChannelMap(6, 9, "interpolate", groups=3), nn.BatchNorm2d(9)),
    "sum": lambda: Sum({"a": conv(6, 8, 3, padding=1), "b": conv(6, 8, 1)}),
    "sum-of-free": lambda: seq(Sum({"pool": nn.AvgPool2d(3, 1, 1), "through": nn.Identity()}), conv(6, 4, 1)),
    "sum-of-one-free": lambda: seq(Sum({"pool": nn.AvgPool2d(3)}), conv(6, 4, 1)),
    "free-then-norm": lambda: seq(conv(6, 8, 1), nn.AvgPool2d(3), nn.BatchNorm2d(8), conv(8, 4, 1)),
    "sum-identity-first": lambda: Sum({"identity": nn.Identity(), "conv": conv(6, 6, 3, padding=1, groups=2)}),
    "sum-of-nests": lambda: Sum(
        {
            "dense": seq(conv(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
            "deep": seq(conv(6, 6, 1, bias=False), BNPad2d(nn.BatchNorm2d(6), 1), conv(6, 6, 3), nn.BatchNorm2d(6)),
            "pool": seq(
                conv(6, 6, 1, bias=False), BNPad2d(nn.BatchNorm2d(6), 1), nn.AvgPool2d(3, 1), nn.BatchNorm2d(6)
            ),
            "inner": Sum({"norm": nn.BatchNorm2d(6), "identity": nn.Identity()}),
        }
    ),
    "sequence-of-sums": lambda: seq(
        Sum({"a": conv(6, 8, 1), "b": conv(6, 8, 1)}),
        nn.BatchNorm2d(8),
        Sum({"c": conv(8, 4, 3), "d": seq(conv(8, 4, 1), nn.AvgPool2d(3, 1))}),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FOLDED)
def test_fold_computes_what_the_module_computes(case: str, dtype: torch.dtype) -> None:
    module = randomize_(FOLDED[case]()).to(dtype).eval()
    for size in ((11, 9), (8, 12)):
        x = torch.randn(2, 6, *size, dtype=dtype)
        folded = fold(module)
        assert type(folded) is nn.Conv2d
        shape = (folded.out_channels, folded.in_channels // folded.groups, *folded.kernel_size)
        assert folded.weight.shape == shape
        assert_same(module(x), folded(x))


@pytest.mark.parametrize("case", FOLDED)
def test_fold_leaves_the_module_as_it_was(case: str) -> None:
    module = randomize_(FOLDED[case]()).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    folded = fold(module)
    for parameter in folded.parameters():
        parameter.data.fill_(7)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_fold_of_a_fold_is_itself() -> None:
    once = fold(randomize_(FOLDED["sum-of-nests"]()).eval())
    twice = fold(once)
    assert torch.equal(once.weight, twice.weight)
    assert torch.equal(once.bias, twice.bias)
    assert repr(once) == repr(twice)


class Doubled(nn.Conv2d):
    """A convolution in name only."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class ActiveNorm(nn.BatchNorm2d):
    """A batch norm with an activation inside, as some libraries have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Residual(nn.Sequential):
    """A sequence with a shortcut around it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class DoubledInside(nn.Conv2d):
    """A convolution whose forward is torch's, and what that calls is not."""

    def _conv_forward(self, *arguments) -> Tensor:
        return 2 * super()._conv_forward(*arguments)


class CalledTwice(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class CallInside(nn.Conv2d):
    def _call_impl(self, x: Tensor) -> Tensor:
        return 2 * super()._call_impl(x)


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def nested(depth: int) -> nn.Module:
    module: nn.Module = conv(6, 6, 1)
    for _ in range(depth):
        module = seq(module)
    return module


def with_forward(module: nn.Module, name: str = "forward") -> nn.Module:
    """`module` with a method replaced on the object, as some libraries patch layers."""
    plain = getattr(module, name)
    setattr(module, name, lambda *arguments: 2 * plain(*arguments))
    return module


def hooked(module: nn.Module, before: bool = False) -> nn.Module:
    """`module` with a hook that changes what it computes."""
    if before:
        module.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    else:
        module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


def pruned(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", 0.5)


def training(module: nn.Module) -> nn.Module:
    """Evaluation mode everywhere but in the innermost batch norms and dropouts."""
    module.eval()
    for inner in module.modules():
        if isinstance(inner, (nn.BatchNorm2d, nn.Dropout)):
            inner.train()
    return module


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


NOT_FOLDED = {
    "nonlinear": (
        lambda: seq(conv(6, 6), nn.ReLU(), conv(6, 6)),
        r"^1: ReLU is not a linear layer.*accepted: .*Conv2d",
    ),
    "nonlinear-deep": (
        lambda: Sum({"a": conv(6, 6, 1), "b": named(inner=named(conv=conv(6, 6, 1), act=nn.SiLU()))}),
        r"^b\.inner\.act: SiLU is not",
    ),
    "batch-norm-training": (
        lambda: training(named(conv=conv(6, 6), bn=nn.BatchNorm2d(6))),
        r"^bn: .*training mode; call \.eval\(\)",
    ),
    "dropout-training": (lambda: training(named(conv=conv(6, 6), drop=nn.Dropout(0.1))), r"^drop: .*training mode"),
    "no-statistics": (
        lambda: seq(conv(6, 6), nn.BatchNorm2d(6, track_running_stats=False)),
        r"^1: .*track_running_stats=False",
    ),
    "same-even": (lambda: conv(6, 6, 4, padding="same"), r"pads an even kernel \(4, 4\) unevenly"),
    "same-even-width": (lambda: conv(6, 6, (3, 2), padding="same"), r"pads an even kernel \(3, 2\) unevenly"),
    "1x1-bn-padded-kxk": (
        lambda: named(first=conv(6, 8, 1), bn=nn.BatchNorm2d(8), last=conv(8, 4, 3, padding=1)),
        r"^last: .*BNPad2d",
    ),
    "2x1-padded-kxk": (
        lambda: seq(conv(6, 8, (2, 1), bias=False), conv(8, 4, 3, padding=1)),
        r"^1: a padded kernel over the height follows one that is not pointwise",
    ),
    "biased-1x1-bn-pad-kxk": (
        lambda: named(first=conv(6, 8, 1), bn=BNPad2d(nn.BatchNorm2d(8), 1), last=conv(8, 4, 3)),
        r"^bn: a zero-padded kernel follows a map with a bias",
    ),
    "average-ceil": (lambda: seq(nn.AvgPool2d(2, ceil_mode=True), conv(6, 6, 1)), "^0: .*ceil_mode"),
    "average-uncounted": (
        lambda: seq(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(6, 6, 1)),
        "^0: .*count_include_pad",
    ),
    "max-pool": (lambda: seq(nn.MaxPool2d(2), conv(6, 6, 1)), "^0: MaxPool2d"),
    "devices": (
        lambda: named(first=conv(6, 6, 1), last=conv(6, 6, 1, device="meta")),
        "^last: layers on different devices: cpu and meta",
    ),
    "devices-norm": (
        lambda: named(conv=conv(6, 6, 1), bn=nn.BatchNorm2d(6, device="meta")),
        "^bn: layers on different devices: cpu and meta",
    ),
    "channels": (lambda: seq(conv(6, 8, 1), conv(6, 4, 1)), "^1: a map to 8 channels"),
    "channels-norm": (lambda: seq(conv(6, 8, 1), nn.BatchNorm2d(6)), "^1: a map to 8 channels"),
    "sum-sizes": (
        lambda: named(sum=Sum({"a": conv(6, 6, 3), "b": conv(6, 6, 1)})),
        "^sum: branches have outputs of different height",
    ),
    "sum-strides": (lambda: Sum({"a": conv(6, 6, 1), "b": conv(6, 6, 1, stride=2)}), "different strides"),
    "empty-sum": (lambda: named(sum=Sum({})), "^sum: .*no branch"),
    "identity-alone": (nn.Identity, "number of channels is unknown"),
    "conv-subclass": (lambda: seq(Doubled(6, 6, 1)), "^0: Doubled"),
    "batch-norm-subclass": (lambda: seq(conv(6, 6), ActiveNorm(6)), "^1: ActiveNorm"),
    "sequential-subclass": (lambda: named(block=Residual(conv(6, 6, 1))), "^block: Residual"),
    "conv-subclass-inside": (lambda: seq(DoubledInside(6, 6, 1)), "^0: DoubledInside is a Conv2d with a forward of"),
    "conv-called-otherwise": (lambda: seq(CalledTwice(6, 6, 1)), "^0: CalledTwice is a Conv2d .* own .__call__."),
    "conv-call-inside": (lambda: seq(CallInside(6, 6, 1)), "^0: CallInside is a Conv2d .* own ._call_impl."),
    "sequential-iterated-otherwise": (lambda: named(block=Backwards(conv(6, 6, 1))), "^block: Backwards .*__iter__"),
    "complex": (lambda: seq(conv(6, 6, 1, dtype=torch.complex64)), "^0: Conv2d has complex weights"),
    "conv-forward-replaced": (
        lambda: seq(with_forward(conv(6, 6))),
        "^0: Conv2d .*a forward of its own",
    ),
    "conv-inside-replaced": (lambda: seq(with_forward(conv(6, 6), "_conv_forward")), "^0: Conv2d .*of its own"),
    "batch-norm-forward-replaced": (lambda: seq(conv(6, 6), with_forward(nn.BatchNorm2d(6))), "^1: .*of its own"),
    "hook": (lambda: hooked(conv(6, 6)), "^Conv2d has forward hooks.*remove them first"),
    "hook-deep": (
        lambda: named(a=conv(6, 6), b=named(bn=hooked(nn.BatchNorm2d(6)))),
        r"^b\.bn: BatchNorm2d has forward",
    ),
    "hook-on-a-nest": (lambda: named(a=hooked(named(conv=conv(6, 6)))), "^a: Sequential has forward hooks"),
    "hook-before": (lambda: seq(hooked(conv(6, 6), before=True)), "^0: Conv2d has forward hooks"),
    "hook-on-a-branch": (lambda: Sum({"a": hooked(conv(6, 6)), "b": conv(6, 6)}), "^a: Conv2d has forward hooks"),
    "hook-on-an-identity": (lambda: seq(conv(6, 6), hooked(nn.Identity())), "^1: Identity has forward hooks"),
    "pruned": (lambda: seq(pruned(conv(6, 6))), r"^0: Conv2d has forward hooks.*prune\.remove"),
    "nonlinear-hooked": (lambda: seq(conv(6, 6), hooked(nn.ReLU())), "^1: ReLU is not a linear layer"),
    "batch-norm-1d": (lambda: seq(conv(6, 6), nn.BatchNorm1d(6)), "^1: BatchNorm1d is not .*accepted: .*BatchNorm2d"),
    "batch-norm-3d": (lambda: seq(conv(6, 6), nn.BatchNorm3d(6)), "^1: BatchNorm3d is not"),
    "transposed": (lambda: nn.ConvTranspose2d(6, 6, 1), "ConvTranspose2d is not"),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_fold_refuses_with_the_path_of_the_layer_at_fault(case: str) -> None:
    make, message = NOT_FOLDED[case]
    module = make()
    module.train(module.training and case.endswith("training"))
    if case.endswith("training"):
        training(module)
    with pytest.raises(FoldError, match=message) as caught:
        fold(module)
    assert module.get_submodule(caught.value.path) is not None


def test_fold_says_that_a_nest_is_too_deep() -> None:
    with pytest.raises(FoldError, match="Sequential is nested too deeply for Python's recursion limit"):
        fold(nested(400))


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_fold_refuses_under_a_global_forward_hook(register: str) -> None:
    hook = getattr(nn.modules.module, register)(lambda *arguments: None)
    try:
        with pytest.raises(FoldError, match=r"a global forward hook is registered"):
            fold(conv(6, 6))
    finally:
        hook.remove()
    fold(conv(6, 6))


@pytest.mark.parametrize("repeated", [conv(6, 6), nn.BatchNorm2d(6)], ids=["conv", "batch norm"])
def test_fold_applies_a_layer_that_stands_twice_twice(repeated: nn.Module) -> None:
    randomize_(repeated)
    module, x = seq(conv(6, 6, 1), repeated, repeated).eval(), torch.randn(1, 6, 9, 9)
    if isinstance(repeated, nn.Conv2d):
        repeated.padding = (0, 0)
    assert_same(module(x), fold(module)(x))


def test_fold_takes_a_pruned_layer_once_pruning_is_made_permanent() -> None:
    module = prune.remove(pruned(conv(6, 8)), "weight").eval()
    x = torch.randn(1, 6, 9, 9)
    assert_same(module(x), fold(module)(x))


def test_fold_under_inference_mode_can_be_trained() -> None:
    module = randomize_(FOLDED["1x1-bn-pad-kxk"]()).eval()
    with torch.inference_mode():
        folded = fold(module)
    assert not any(p.is_inference() for p in folded.parameters())
    assert all(p.is_leaf and p.requires_grad for p in folded.parameters())
    x = torch.randn(1, 6, 9, 9)
    assert_same(module(x), folded(x))
    folded(x).sum().backward()
    torch.optim.SGD(folded.parameters(), 0.1).step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fold_keeps_the_dtype(dtype: torch.dtype) -> None:
    module = randomize_(FOLDED["conv-bn"]()).to(dtype).eval()
    folded = fold(module)
    assert {folded.weight.dtype, folded.bias.dtype} == {dtype}
    x = torch.randn(1, 6, 9, 9, dtype=dtype)
    half = 2e-2 if dtype is torch.bfloat16 else 3e-3
    assert relative_error(module(x), folded(x)) < (half if dtype.itemsize == 2 else 1e-5)


def test_fold_in_half_loses_no_more_than_its_result() -> None:
    """The arithmetic is done in float64: each folded value is the nearest that half precision has."""
    module = randomize_(FOLDED["sum-of-nests"]()).half().eval()
    exact = fold(module.double())
    module.half()
    assert torch.equal(fold(module).weight, exact.weight.half())


def test_fold_does_not_ignore_half_precision_overflow() -> None:
    module = named(conv=conv(6, 6), bn=nn.BatchNorm2d(6)).eval()
    nn.init.constant_(module.bn.running_var, 1e-7)
    module.bn.eps = 1e-9
    nn.init.constant_(module.conv.weight, 100)
    module = module.half()
    with pytest.raises(FoldError, match=r"not finite in torch\.float16"):
        fold(module)


def test_fold_refuses_values_that_are_not_finite() -> None:
    module = FOLDED["conv-bn"]().eval()
    nn.init.constant_(module[1].bias, float("nan"))
    with pytest.raises(FoldError, match="not finite"):
        fold(module)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_fold_keeps_requires_grad(requires_grad: bool) -> None:
    module = FOLDED["conv-bn"]().eval().requires_grad_(requires_grad)
    folded = fold(module)
    assert all(p.requires_grad is requires_grad for p in folded.parameters())
    assert all(p.is_leaf for p in folded.parameters())
    assert not folded.training


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_fold_keeps_the_memory_format(memory_format: torch.memory_format) -> None:
    module = randomize_(FOLDED["sum-of-nests"]()).eval().to(memory_format=memory_format)
    assert fold(module).weight.is_contiguous(memory_format=memory_format)


def test_fold_reads_parametrized_weights() -> None:
    module = nn.utils.parametrizations.weight_norm(conv(6, 8)).eval()
    x = torch.randn(1, 6, 9, 9)
    assert_same(module(x), fold(module)(x))


@pytest.mark.parametrize(
    ("module", "size", "dilation"),
    [
        (lambda: conv(6, 8, 1, dilation=3), (1, 1), (1, 1)),
        (lambda: Sum({"a": conv(6, 6, 1, dilation=3), "b": conv(6, 6, 3, padding=2, dilation=2)}), (3, 3), (2, 2)),
        (lambda: Sum({"a": conv(6, 6, (2, 1), dilation=2), "b": conv(6, 6, (2, 1), dilation=2)}), (2, 1), (2, 1)),
    ],
    ids=["1x1", "1x1 beside a dilated 3x3", "two taps"],
)
def test_the_folded_kernel_has_no_taps_that_are_zero_by_construction(
    module: Callable[[], nn.Module], size: tuple[int, int], dilation: tuple[int, int]
) -> None:
    """A dilation is kept, and the dilation of a single tap means nothing."""
    folded = fold(module().eval())
    assert folded.kernel_size == size
    assert [d for d, k in zip(folded.dilation, size, strict=True) if k > 1] == [
        d for d, k in zip(dilation, size, strict=True) if k > 1
    ]
