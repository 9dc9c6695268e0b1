"""The start `split`: the branches of a trained block take parts of its kernel, and the block computes the same.

A branch that starts with a gain of zero hardly moves in a training of usual length. Here each of the n paths, the dense
one included, starts with 1 / n of every tap that it covers: a 1x1 convolution with a part of the centre tap, an
identity with a part of the centre's diagonal, a convolution of the dense size with the whole kernel at 1 / n of the
gain. In eval mode the block computes what it computed. In training mode it does so as closely as the statistics of a
batch agree with those of the images that it is given: the user's data, which may differ from what it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.algebra import as_pair
from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.linear import FixedScale, Scale
from yolorep.blocks.starts import DENSE, pass_on_
from yolorep.errors import BlockError
from yolorep.training.merged_conv import diagonal_of

GAINS = (_BatchNorm, Scale, FixedScale)
BEFORE = "before"  # key of the statistics of the convolution as it was


class BranchPath(NamedTuple):
    """A branch that can take a share: a convolution, a gain (a batch norm or a scale), or both in this order."""

    conv: nn.Conv2d | None
    gain: Any

    @classmethod
    def of(cls, branch: nn.Module) -> BranchPath | None:
        """Return the parts of a branch; None if it is made of other layers."""
        layers: list[Any] = list(branch.children()) if isinstance(branch, nn.Sequential) else [branch]
        conv = layers.pop(0) if layers and isinstance(layers[0], nn.Conv2d) else None
        gain = layers.pop(0) if layers and isinstance(layers[0], GAINS) else None
        fixed_input = conv is None and isinstance(gain, FixedScale)
        return None if layers or fixed_input or (conv is None and gain is None) else cls(conv, gain)

    @property
    def norm(self) -> _BatchNorm | None:
        return self.gain if isinstance(self.gain, _BatchNorm) else None


@dataclass
class Statistics:
    """Mean and variance of each channel, averaged over batches as a cumulative batch norm does."""

    batches: int = 0
    mean: Any = 0.0
    var: Any = 0.0

    def add(self, values: Tensor) -> None:
        """Add a batch, (batch, channels, height, width)."""
        self.batches += 1
        var, mean = torch.var_mean(values.double(), dim=(0, 2, 3))
        self.mean = self.mean + (mean - self.mean) / self.batches
        self.var = self.var + (var - self.var) / self.batches


@dataclass
class Split:
    """The shares of one block whose branches add nothing yet.

    paths: the branches that take a share, by name. left: names of those that stay silent. whole: paths with a batch
    norm or scale that take the whole kernel at a share of the dense batch norm's gain. dense: the kernel that the dense
    convolution keeps.
    """

    block: Conv_C3
    paths: dict[str, BranchPath] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)
    kernels: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    dense: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    @torch.no_grad()
    def of(cls, block: Conv_C3) -> Split:
        """Divide the kernel of a block among its paths; nothing is changed.

        Raises:
            BlockError: the block's batch norm has no gain or no statistics.
        """
        if block.bn.running_var is None or not block.bn.affine:
            raise BlockError("start split divides the gain of a batch norm with a weight and recorded statistics")
        split = cls(block)
        for name, branch in block.branches():
            path = BranchPath.of(branch)
            taps = None if path is None else _taps(block.conv, path)
            if path is None or taps is None:
                split.left.append(name)
                continue
            part = taps(block.conv.weight).clone()
            split.paths[name] = path
            split.kernels[name] = part if part.dim() == 4 else part.reshape(-1, 1, 1, 1)
            if block.law == "each" and path.gain is not None and part.shape == block.conv.weight.shape:
                split.whole.add(name)
        split.dense = block.conv.weight.clone()
        kept = split.number - len(split.whole)
        for name, path in split.paths.items():
            if name not in split.whole:
                part = _taps(block.conv, path)(split.dense)  # type: ignore[misc]
                part.sub_((split.kernels[name] / kept).view_as(part))
        return split

    @property
    def number(self) -> int:
        """The number of paths that have a share."""
        return 1 + len(self.paths)

    @property
    def measures(self) -> bool:
        """Whether statistics that the block does not record are needed."""
        return any(path.norm is not None and name not in self.whole for name, path in self.paths.items())

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add a batch of the block's input to the statistics."""
        conv = self.block.conv
        self._of(BEFORE).add(conv(x))
        self._of(DENSE).add(conv._conv_forward(x, self.dense.to(x.dtype), None))
        for name, path in self.paths.items():
            if path.norm is not None:
                weight = self.kernels[name].to(x.dtype)
                self._of(name).add(x if path.conv is None else path.conv._conv_forward(x, weight, None))

    def _of(self, name: str) -> Statistics:
        return self.statistics.setdefault(name, Statistics())

    @torch.no_grad()
    def apply_(self) -> None:
        """Write kernels, gains and statistics into the block."""
        block, bn = self.block, self.block.bn
        recorded = Statistics(1, bn.running_mean.double(), bn.running_var.double())  # type: ignore[union-attr]
        seen = {name: self.statistics.get(name, recorded) for name in (BEFORE, DENSE, *self.paths)}
        if block.law == "each":
            self._share_norm_(seen, recorded)
        else:
            for path, kernel in self._given():
                _scale_(path, kernel, 1 / self.number)
            for name, layer in block.named_children():
                if name.startswith(DENSE):
                    pass_on_(layer, seen[DENSE].mean, seen[DENSE].var)
        block.conv.weight.copy_(self.dense)

    def _given(self) -> Iterator[tuple[BranchPath, Tensor]]:
        return ((path, self.kernels[name]) for name, path in self.paths.items())

    def _share_norm_(self, seen: dict[str, Statistics], recorded: Statistics) -> None:
        """Divide what the block's batch norm does among the batch norms of all paths.

        slope: of the block's batch norm in eval mode. ratio: recorded variance / variance of the images, eps included.
        A batch norm whose recorded variance is `ratio` times that of the images has the right slope in both modes. The
        recorded means of the branches are zero: their sum is the dense one's, and no rounding adds to it.
        """
        bn = self.block.bn
        slope = bn.weight.double() / (recorded.var + bn.eps).sqrt()
        ratio = (recorded.var + bn.eps) / (seen[BEFORE].var + bn.eps)
        for name, path in self.paths.items():
            kernel = self.kernels[name]
            own = kernel.flatten().double() if path.conv is None else torch.ones_like(slope)
            if path.norm is None:
                _scale_(path, kernel, slope / self.number)
            else:
                _set_(path.norm, slope * own / self.number, seen[name].var, ratio)
                path.norm.bias.zero_()
                path.norm.running_mean.zero_()  # type: ignore[union-attr]
                if path.conv is not None:
                    path.conv.weight.copy_(kernel)
        kept = 1 - len(self.whole) / self.number
        _set_(bn, slope * kept, seen[DENSE].var, ratio)
        bn.running_mean.copy_(recorded.mean / kept)  # type: ignore[union-attr]


def _taps(dense: nn.Conv2d, path: BranchPath) -> Any:
    """Return the function from a dense kernel to a view of the part that a path covers; None if it covers none.

    A path without a convolution, or with one filter for each channel, covers the diagonal of the centre.
    """
    conv = path.conv
    size, padding, dilation = ((1, 1), (0, 0), (1, 1)) if conv is None else _geometry(conv)
    whole_size, whole_padding, steps = _geometry(dense)
    start = [(outer - inner) // step for outer, inner, step in zip(whole_padding, padding, steps, strict=True)]
    fits = all(
        (outer - inner) % step == 0 and 0 <= first <= whole - part and (part == 1 or own == step)
        for outer, inner, step, first, whole, part, own in zip(
            whole_padding, padding, steps, start, whole_size, size, dilation, strict=True
        )
    )
    strides = dense.stride if conv is None else conv.stride
    modes = "zeros" if conv is None or size == (1, 1) else conv.padding_mode
    if not fits or strides != dense.stride or (modes != dense.padding_mode and size != (1, 1)):
        return None
    rows, columns = (slice(first, first + part) for first, part in zip(start, size, strict=True))
    diagonal = conv is None or (conv.groups == conv.in_channels != dense.groups)
    if diagonal:
        return lambda weight: diagonal_of(weight[:, :, rows, columns], dense.groups)
    return (lambda weight: weight[:, :, rows, columns]) if conv.groups == dense.groups else None  # type: ignore[union-attr]


def _geometry(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    return as_pair(conv.kernel_size), as_pair(conv.padding), as_pair(conv.dilation)  # type: ignore[arg-type]


def _scale_(path: BranchPath, kernel: Tensor, gain: Tensor | float) -> None:
    """Make a branch without a batch norm compute gain * (kernel * x)."""
    if isinstance(path.gain, Scale):
        path.gain.weight.copy_(gain * (kernel.flatten() if path.conv is None else torch.ones_like(path.gain.weight)))
    elif path.conv is not None:
        fixed = 1 if path.gain is None else path.gain.weight
        kernel = kernel * torch.as_tensor(gain / fixed, dtype=torch.float64).to(kernel).view(-1, 1, 1, 1)
    if path.conv is not None:
        path.conv.weight.copy_(kernel)


def _set_(bn: _BatchNorm, slope: Tensor, var: Tensor, ratio: Tensor) -> None:
    """Give a batch norm this slope in eval mode, and slope * sqrt(ratio) on a batch of variance `var`."""
    bn.running_var.copy_(((var + bn.eps) * ratio - bn.eps).clamp_min(0))  # type: ignore[union-attr]
    bn.weight.copy_(slope * (bn.running_var.double() + bn.eps).sqrt())  # type: ignore[union-attr]
