"""One model there and back: expanded, its branches given values, deployed and fused; what each step changes.

All in float64, so that what is seen is the algebra and not the order in which float32 adds up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import yolorep
from yolorep.stock_layers import rep_blocks, stock_convs

SIDE = 64
RANGES = {"running_mean": (-0.3, 0.3), "running_var": (0.5, 2), "weight": (0.4, 1.4), "bias": (-0.3, 0.3)}


@dataclass(frozen=True)
class Roundtrip:
    """Errors are the largest difference of any output, relative to the largest value of that output.

    expanded, of: layers that got branches, stock convolutions of the model. expand: against the stock model. deploy,
    fuse: against the rep model with random branches; fuse is the host's, the larger of `rep.fuse()` and of what the
    host by itself does to the deployed model. keys: the deployed model has the state-dict keys, shapes and classes of
    stock. norms: batch norms that the host's fuse leaves in the stock model; norms_left: in the rep model.
    """

    expanded: int
    of: int
    expand: float
    deploy: float
    fuse: float
    keys: bool
    norms: int
    norms_left: int


@torch.no_grad()
def roundtrip(stock: nn.Module, *, fuse_in: torch.dtype = torch.float64) -> Roundtrip:
    """Measure one model of a host. fuse_in: what its `fuse` takes; a YOLOv5 tree's takes float32 alone."""
    stock = randomize_(stock.eval().double())
    first = next(m for m in stock.modules() if isinstance(m, nn.Conv2d))
    side = max(SIDE, int(torch.as_tensor(stock.stride).max()))
    image = torch.rand(2, first.in_channels, side, side, generator=generator(), dtype=torch.float64)
    convs, before = len(list(stock_convs(stock))), layout(stock)
    rep = yolorep.expand(stock)
    expanded = rep_blocks(rep)
    unchanged = difference(stock(image), rep(image))
    norms = norms_of(unhooked_fuse(stock.to(fuse_in)))
    for name in expanded:
        randomize_(rep.get_submodule(name))
    trained = rep(image)
    deployed = yolorep.deploy(rep)
    keys, folded = layout(deployed) == before, difference(trained, deployed(image))
    fused = [difference(trained, f(m.to(fuse_in)).double()(image)) for f, m in ((fuse, rep), (unhooked_fuse, deployed))]
    return Roundtrip(len(expanded), convs, unchanged, folded, max(fused), keys, norms, norms_of(rep))


def generator() -> torch.Generator:
    """The same random numbers each time."""
    return torch.Generator().manual_seed(0)


def randomize_(module: nn.Module) -> nn.Module:
    """Give every batch norm statistics and an affine map such as training leaves, gammas of both signs among them."""
    random = generator()
    for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
        for name, (low, high) in RANGES.items():
            values = getattr(norm, name)
            values.copy_(torch.rand(values.shape, generator=random) * (high - low) + low)
        norm.weight.mul_(torch.where(torch.rand(norm.weight.shape, generator=random) < 0.2, -1, 1).to(norm.weight))
    return module


def fuse(model: Any) -> nn.Module:
    """The host's `fuse`, with yolorep's hook."""
    return model.fuse()


def unhooked_fuse(model: Any) -> nn.Module:
    """The host's `fuse` as it is without yolorep."""
    return type(model).fuse.__wrapped__(model)


def layout(model: nn.Module) -> tuple[list[tuple[str, tuple[int, ...]]], Counter[type]]:
    """State-dict keys with their shapes, in order, and how many modules there are of each class."""
    return [(k, tuple(v.shape)) for k, v in model.state_dict().items()], Counter(type(m) for m in model.modules())


def norms_of(model: nn.Module) -> int:
    """How many batch norms a model has."""
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


def difference(expected: Any, got: Any) -> float:
    """The largest relative error of two outputs; what only one has is passed over, as heads that a host's fuse drops.

    An output without a common tensor, or with one of another shape, is infinitely wrong.
    """
    errors = [relative(a, b) for a, b in pairs(expected, got)]
    return max(errors, default=float("inf"))


def relative(expected: Tensor, got: Tensor) -> float:
    """The largest difference relative to the largest value expected."""
    if expected.shape != got.shape:
        return float("inf")
    error = float((expected.double() - got.double()).abs().max())
    return error / max(float(expected.double().abs().max()), 1e-30) if error == error else float("inf")


def pairs(one: Any, other: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors at the same place in two nests."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.numel():
            yield one, other
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() & other.keys():
            yield from pairs(one[key], other[key])
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        for a, b in zip(one, other, strict=False):
            yield from pairs(a, b)
