"""Round trip of one model: expand, give the branches random values, deploy, fuse; the error of each step.

Everything runs in float64, so that the errors come from the algebra and not from float32 summation.
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
    """Errors of the steps: the largest difference of any output, relative to the largest value of that output.

    expanded: number of layers with branches. of: number of stock convolutions. expand: error of the expanded model
    against stock. deploy: error of the deployed model against the rep model with random branches. fuse: the same for
    the host's fuse, the larger error of `rep.fuse()` and of the host's unhooked fuse on the deployed model. keys: the
    deployed model has the state-dict keys, shapes and classes of stock. norms, norms_left: batch norms that the host's
    fuse leaves in the stock model and in the rep model.
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
    """Measure one model of a host. fuse_in: dtype for the host's `fuse`; a YOLOv5 tree supports only float32."""
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
    """Return a generator that yields the same numbers each time."""
    return torch.Generator().manual_seed(0)


def randomize_(module: nn.Module) -> nn.Module:
    """Give every batch norm random statistics and an affine map with gammas of both signs."""
    random = generator()
    for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
        for name, (low, high) in RANGES.items():
            values = getattr(norm, name)
            values.copy_(torch.rand(values.shape, generator=random) * (high - low) + low)
        norm.weight.mul_(torch.where(torch.rand(norm.weight.shape, generator=random) < 0.2, -1, 1).to(norm.weight))
    return module


def fuse(model: Any) -> nn.Module:
    """Call the host's `fuse` with yolorep's hook."""
    return model.fuse()


def unhooked_fuse(model: Any) -> nn.Module:
    """Call the host's `fuse` without yolorep's hook."""
    return type(model).fuse.__wrapped__(model)


def layout(model: nn.Module) -> tuple[list[tuple[str, tuple[int, ...]]], Counter[type]]:
    """Return state-dict keys with shapes, in order, and the number of modules of each class."""
    return [(k, tuple(v.shape)) for k, v in model.state_dict().items()], Counter(type(m) for m in model.modules())


def norms_of(model: nn.Module) -> int:
    """Return the number of batch norms."""
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


def difference(expected: Any, got: Any) -> float:
    """Return the largest relative error of two outputs, infinity if they share no tensor or a shape differs.

    Entries that only one output has are skipped: the fuse of some hosts drops auxiliary heads.
    """
    errors = [relative(a, b) for a, b in pairs(expected, got)]
    return max(errors, default=float("inf"))


def relative(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference divided by the largest expected value; infinity for NaN or another shape."""
    if expected.shape != got.shape:
        return float("inf")
    error = float((expected.double() - got.double()).abs().max())
    return error / max(float(expected.double().abs().max()), 1e-30) if error == error else float("inf")


def pairs(one: Any, other: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tensors at the same place in two nested outputs."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.numel():
            yield one, other
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() & other.keys():
            yield from pairs(one[key], other[key])
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        for a, b in zip(one, other, strict=False):
            yield from pairs(a, b)
