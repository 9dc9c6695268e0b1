"""The algebra's laws, and every kernel against `torch.nn.functional.conv2d`."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.algebra.kernels import apply, free, identity, image, kernel
from tests.helpers import assert_same
from yolorep import FoldError
from yolorep.algebra import Kernel, Moments, add, regroup
from yolorep.composition import compose
from yolorep.precision import has_values

SIZES = [(9, 11), (12, 8)]  # odd and even images
# (first, second) as (in, out, size, geometry); second pads only where that is exact.
COMPOSED = {
    "1x1-3x3": ((4, 6, 1, {}), (6, 5, 3, {})),
    "1x1-3x3-padded": ((4, 6, 1, {"bias": False}), (6, 5, 3, {"padding": 1})),
    "1x1-strided-3x3-padded": ((4, 6, 1, {"bias": False, "stride": 2}), (6, 5, 3, {"padding": 1, "stride": 2})),
    "1x1-3x3-reflect": ((4, 6, 1, {}), (6, 5, 3, {"padding": 1, "padding_mode": "reflect"})),
    "1x1-3x3-replicate": ((4, 6, 1, {}), (6, 5, 3, {"padding": 1, "padding_mode": "replicate"})),
    "1x1-3x3-circular": ((4, 6, 1, {}), (6, 5, 3, {"padding": 1, "padding_mode": "circular"})),
    "3x3-padded-1x1": ((4, 6, 3, {"padding": 1}), (6, 5, 1, {})),
    "3x3-reflect-1x1": ((4, 6, 3, {"padding": 1, "padding_mode": "reflect"}), (6, 5, 1, {})),
    "3x3-strided-1x1": ((4, 6, 3, {"padding": 1, "stride": 2}), (6, 5, 1, {})),
    "3x3-3x3": ((4, 6, 3, {"padding": 2}), (6, 5, 3, {})),
    "3x3-dilated-3x3": ((4, 6, 3, {"dilation": 2, "padding": 2}), (6, 5, 3, {})),
    "3x3-3x3-dilated": ((4, 6, 3, {}), (6, 5, 3, {"dilation": 2})),
    "both-dilated": ((4, 6, 3, {"dilation": 2, "padding": 1}), (6, 5, 3, {"dilation": 2})),
    "strided-3x3": ((4, 6, 2, {"stride": 2}), (6, 5, 3, {})),
    "strided-dilated": ((4, 6, 3, {"stride": 2, "padding": 1}), (6, 5, 2, {"stride": 2, "dilation": 2})),
    "1x1-strided-2x2": ((4, 6, 1, {"stride": 3}), (6, 5, 2, {})),
    "rectangular": ((4, 6, (1, 3), {"padding": (0, 1)}), (6, 5, (3, 1), {"padding": 0})),
    "rectangular-padded": ((4, 6, (1, 3), {"bias": False}), (6, 5, (3, 1), {"padding": (1, 0)})),
    "rectangular-strided": ((4, 6, (3, 2), {"stride": (1, 2)}), (6, 5, (2, 1), {"stride": (2, 1)})),
    "even": ((4, 6, 2, {"padding": 1}), (6, 5, 4, {})),
    "groups-2-2": ((4, 6, 3, {"groups": 2}), (6, 8, 1, {"groups": 2})),
    "groups-2-1": ((4, 6, 3, {"groups": 2}), (6, 5, 1, {})),
    "groups-1-3": ((4, 6, 1, {}), (6, 9, 3, {"groups": 3})),
    "groups-6-4": ((12, 12, 3, {"groups": 6}), (12, 8, 1, {"groups": 4})),
    "groups-2-3": ((6, 6, 3, {"groups": 2}), (6, 6, 1, {"groups": 3})),
    "depthwise-depthwise": ((6, 6, 3, {"groups": 6}), (6, 6, 3, {"groups": 6})),
    "depthwise-multiplied": ((6, 12, 3, {"groups": 6}), (12, 12, 1, {"groups": 12})),
    "depthwise-pointwise": ((6, 6, 3, {"groups": 6, "padding": 1}), (6, 4, 1, {})),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", COMPOSED)
def test_compose_computes_one_map_after_the_other(case: str, size: tuple[int, int]) -> None:
    first, second = (kernel(*shape, **geometry) for *shape, geometry in COMPOSED[case])
    x = image(first.in_channels, size)
    assert_same(apply(second, apply(first, x)), apply(compose(first, second), x))


def random_chain(seed: int) -> list[Kernel]:
    """Three kernels in sequence, of random sizes, strides, dilations and groups; only the first pads."""
    pick = random.Random(seed).choice
    channels, chain = 12, []
    for place in range(3):
        geometry = {
            "stride": (pick([1, 1, 2]), pick([1, 1, 2])),
            "dilation": (pick([1, 1, 2, 3]), pick([1, 2])),
            "padding": (pick([0, 1, 2]), pick([0, 1, 2])) if place == 0 else 0,
            "groups": pick([1, 2, 3, 4, 12]),
        }
        chain.append(kernel(channels, 12, (pick([1, 2, 3]), pick([1, 2, 3])), **geometry))
    return chain


@pytest.mark.parametrize("seed", range(40))
def test_compose_is_associative(seed: int) -> None:
    torch.manual_seed(seed)
    a, b, c = random_chain(seed)
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    assert (left.stride, left.padding, left.groups) == (right.stride, right.padding, right.groups)
    x = image(12, (67, 71))
    expected = apply(c, apply(b, apply(a, x)))
    assert_same(expected, apply(left, x))
    assert_same(expected, apply(right, x))


def random_branches(seed: int) -> list[Kernel]:
    """Kernels of the same output size: 'same' padding plus a common border, random sizes, dilations and groups."""
    pick = random.Random(seed).choice
    stride, border, cin = (pick([1, 2]), pick([1, 2])), pick([0, 1]), pick([12, 24])
    result = []
    for _ in range(pick([2, 3, 4])):
        size, dilation = (pick([1, 3, 5]), pick([1, 3])), (pick([1, 2, 3]), pick([1, 2]))
        padding = tuple(border + d * (k - 1) // 2 for k, d in zip(size, dilation, strict=True))
        groups = pick([1, 2, 3, 4, 6, 12])
        result.append(kernel(cin, 12, size, stride=stride, padding=padding, dilation=dilation, groups=groups))
    return result


@pytest.mark.parametrize("seed", range(40))
def test_add_computes_the_sum_in_any_order(seed: int) -> None:
    torch.manual_seed(seed)
    branches = random_branches(seed)
    x = image(branches[0].in_channels, SIZES[seed % 2])
    expected = sum(apply(k, x) for k in branches)
    assert_same(expected, apply(add(branches), x))
    assert_same(expected, apply(add(branches[::-1]), x))
    assert_same(expected, apply(add([branches[0], add(branches[1:])]), x))


@pytest.mark.parametrize("seed", range(20))
def test_compose_distributes_over_add(seed: int) -> None:
    torch.manual_seed(seed)
    branches = random_branches(seed)
    after = kernel(12, 8, 1, groups=2)
    before = kernel(8, branches[0].in_channels, 1, bias=False)
    x = image(8, SIZES[seed % 2])
    whole = compose(compose(before, add(branches)), after)
    parts = [compose(compose(before, k), Kernel(after.weight, 0 * after.bias, groups=2)) for k in branches]
    parts[0] = compose(compose(before, branches[0]), after)
    assert_same(apply(whole, x), apply(add(parts), x))


ADDED = {
    "sizes": [(1, {}), (3, {"padding": 1}), (5, {"padding": 2})],
    "dilations": [(3, {"padding": 2, "dilation": 2}), (3, {"padding": 3, "dilation": 3}), (1, {})],
    "dilation-kept": [(3, {"padding": 2, "dilation": 2}), (5, {"padding": 4, "dilation": 2}), (1, {})],
    "rectangular": [((1, 3), {"padding": (0, 1)}), ((3, 1), {"padding": (1, 0)})],
    "even": [(2, {}), (4, {"padding": 1})],
    "groups": [(3, {"padding": 1, "groups": 2}), (1, {"groups": 4}), (1, {"groups": 12})],
    "groups-coprime": [(1, {"groups": 2}), (1, {"groups": 3})],
    "strided": [(3, {"padding": 1, "stride": 2}), (1, {"stride": 2})],
    "extra-border": [(3, {"padding": 2}), (1, {"padding": 1})],
    "reflect": [
        (3, {"padding": 1, "padding_mode": "reflect"}),
        (1, {}),
        (5, {"padding": 2, "padding_mode": "reflect"}),
    ],
    "circular": [(3, {"padding": 1, "padding_mode": "circular"}), (1, {})],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ADDED)
def test_add_unites_geometries(case: str, size: tuple[int, int]) -> None:
    branches = [kernel(12, 12, k, **geometry) for k, geometry in ADDED[case]]
    x = image(12, size)
    assert_same(sum(apply(k, x) for k in branches), apply(add(branches), x))


LEAST = {  # (size, padding, dilation) of each branch, and of the sum
    "dilated": ([(1, 0, 2), (3, 2, 2), (5, 4, 2)], (5, 4, 2)),
    "single taps": ([(1, 0, 3), (1, 0, 2)], (1, 0, 1)),
    "less padding than dilation": ([(3, 1, 3), (3, 1, 3)], (3, 1, 3)),
    "two taps": ([(2, 0, 2), (2, 0, 2)], (2, 0, 2)),
    "a finer grid": ([(2, 0, 2), (3, 0, 1)], (3, 0, 1)),
}


@pytest.mark.parametrize("case", LEAST)
def test_add_is_no_larger_than_its_branches_need(case: str) -> None:
    shapes, least = LEAST[case]
    branches = [kernel(4, 4, size, padding=padding, dilation=dilation) for size, padding, dilation in shapes]
    total, x = add(branches), image(4)
    assert (total.size, total.padding, total.dilation) == tuple((n, n) for n in least)
    assert_same(sum(apply(k, x) for k in branches), apply(total, x))


def test_compose_has_the_dilation_of_the_taps() -> None:
    assert compose(kernel(4, 6, 1, dilation=3), kernel(6, 5, 1, dilation=2)).dilation == (1, 1)
    assert compose(kernel(4, 6, (1, 3), dilation=3), kernel(6, 5, (3, 1), dilation=2)).dilation == (2, 3)


def with_moments(k: Kernel) -> Kernel:
    return replace(k, moments=Moments(torch.randn(k.out_channels), torch.rand(k.out_channels)))


def test_moments_add_and_are_those_of_the_last_map() -> None:
    a, b, c = with_moments(kernel(6, 6, 1)), with_moments(kernel(6, 6, 1)), kernel(6, 6, 1)
    total = add([a, c, b]).moments
    assert torch.equal(total.mean, a.moments.mean + b.moments.mean)
    assert torch.equal(total.var, a.moments.var + b.moments.var)
    assert add([c, c]).moments is None
    for last in (b, with_moments(kernel(6, 6, 1, groups=6))):
        assert compose(a, last).moments is last.moments
    assert compose(a, c).moments is None


@pytest.mark.parametrize(
    "geometry",
    [{}, {"stride": 2}, {"padding": 1}, {"padding": 2, "dilation": 2}, {"groups": 2}, {"groups": 6}],
    ids=str,
)
def test_identity_is_neutral(geometry: dict[str, Any]) -> None:
    k = kernel(6, 6, 3, **geometry)
    for result in (compose(identity(), k), compose(k, identity())):
        assert torch.equal(result.weight, k.weight)
        assert torch.equal(result.bias, k.bias)
        for name in ("stride", "padding", "dilation", "groups"):
            assert getattr(result, name) == getattr(k, name)


def test_channel_free_kernels_fit_any_channels() -> None:
    pool, dense, x = free(3, 3, padding=1), kernel(6, 4, 1, bias=False), image(6)
    both = add([pool, identity()])
    assert both.groups == 0
    assert_same(apply(pool, x) + x, apply(both, x))
    assert_same(apply(dense, apply(pool, x)), apply(compose(pool, dense), x))
    assert_same(apply(pool, apply(dense, x)), apply(compose(dense, pool), x))
    unpadded = free(2, 2, stride=2)
    assert_same(apply(unpadded, apply(pool, x)), apply(compose(pool, unpadded), x))


@pytest.mark.parametrize(("old", "new"), [(1, 1), (2, 1), (4, 2), (6, 3), (12, 1), (12, 4), (12, 12)])
@pytest.mark.parametrize("out", [12, 24])
def test_regroup_writes_the_same_map_with_fewer_groups(old: int, new: int, out: int) -> None:
    k, x = kernel(12, out, 3, groups=old), image(12)
    assert_same(apply(k, x), apply(Kernel(regroup(k, new), k.bias, groups=new), x))


def test_regroup_keeps_groups_apart() -> None:
    dense = regroup(kernel(6, 6, 1, groups=3), 1)[:, :, 0, 0]
    apart = torch.block_diag(*torch.ones(3, 2, 2)) == 0
    assert (dense[apart] == 0).all()
    assert (dense[~apart] != 0).all()


PADDED = {"padding": 1}
NOT_COMPOSABLE = {
    "channels": (kernel(4, 6, 1), kernel(5, 4, 1), "6 channels .* from 5"),
    "bias-before-zeros": (kernel(4, 4, 1), kernel(4, 4, 3, **PADDED), "zero-padded kernel follows a map with a bias"),
    "large-before-padding": (kernel(4, 4, 3, bias=False), kernel(4, 4, 3, **PADDED), "height .* not pointwise"),
    "wide-before-padding": (
        kernel(4, 4, (1, 3), bias=False),
        kernel(4, 4, 3, **PADDED),
        "width .* not pointwise",
    ),
    "padded-pointwise-before-padding": (
        kernel(4, 4, 1, bias=False, padding=1),
        kernel(4, 4, 3, **PADDED),
        "not exact at the border",
    ),
    "reflect-after-stride": (
        kernel(4, 4, 1, stride=2),
        kernel(4, 4, 3, **PADDED, padding_mode="reflect"),
        "reflect padding after a stride of 2",
    ),
    "two-modes": (
        kernel(4, 4, (1, 3), bias=False, padding=(0, 1), padding_mode="circular"),
        kernel(4, 4, (3, 1), padding=(1, 0)),
        "pad the border differently",
    ),
}


@pytest.mark.parametrize("case", NOT_COMPOSABLE)
def test_compose_refuses_what_is_not_exact(case: str) -> None:
    first, second, message = NOT_COMPOSABLE[case]
    with pytest.raises(FoldError, match=message):
        compose(first, second)


NOT_ADDABLE = {
    "in-channels": ([kernel(4, 4, 1), kernel(6, 4, 1)], "different channels"),
    "out-channels": ([kernel(4, 4, 1), kernel(4, 6, 1)], "different channels"),
    "strides": ([kernel(4, 4, 1), kernel(4, 4, 1, stride=2)], "different strides"),
    "height": ([kernel(4, 4, (3, 1)), kernel(4, 4, 1)], "different height"),
    "width": ([kernel(4, 4, 3, padding=1), kernel(4, 4, 3, padding=(1, 0))], "different width"),
    "dilated-height": ([kernel(4, 4, 3, padding=1), kernel(4, 4, 3, padding=1, dilation=2)], "different height"),
    "modes": (
        [kernel(4, 4, 3, padding=1), kernel(4, 4, 3, padding=1, padding_mode="reflect")],
        "pad the border differently",
    ),
}


@pytest.mark.parametrize("case", NOT_ADDABLE)
def test_add_refuses_what_is_not_exact(case: str) -> None:
    kernels, message = NOT_ADDABLE[case]
    with pytest.raises(FoldError, match=message):
        add(kernels)


@pytest.mark.parametrize("case", ["bias-before-zeros", "large-before-padding", "reflect-after-stride"])
def test_compose_refusals_are_needed(case: str) -> None:
    """What is refused is truly another map at the border: ignoring the refusal would be an error."""
    first, second, _ = NOT_COMPOSABLE[case]
    without = Kernel(second.weight, second.bias, second.stride, (0, 0), second.dilation)
    inside = compose(first, without)
    padded = tuple(first.stride[a] * second.padding[a] + first.padding[a] for a in (0, 1))
    naive = Kernel(inside.weight, inside.bias, inside.stride, padded, inside.dilation, 1, second.padding_mode)
    x = image(4, (12, 8))
    expected, got = apply(second, apply(first, x)), apply(naive, x)
    assert expected.shape == got.shape
    assert (expected - got).abs().max() > 1e-3


def test_has_values_tells_shapes_from_numbers() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert not has_values(torch.zeros(1))
    assert not has_values(torch.zeros(1, device="meta"))
    assert has_values(torch.zeros(1))
