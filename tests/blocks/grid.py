"""Every geometry that a `Conv_C3` can have, folded: the worst error of each block, as a test and as a table.

`python -m tests.blocks.grid [BLOCK ...]` prints the table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from operator import itemgetter

import torch

from tests.helpers import randomize_, relative_error
from yolorep import Conv_C3
from yolorep.blocks import BLOCKS, IDENTITIES

CHANNELS = ((12, 24), (12, 12), (24, 12))
STRIDES, DILATIONS, KERNELS = (1, 2), (1, 2), (1, 3, 5)
GROUPS = ("1", "2", "depthwise")
SIZE = (11, 9)  # odd, so that a stride of 2 leaves a border over


@dataclass(frozen=True)
class Case:
    """One `Conv_C3`, in short: its arguments."""

    block: str
    c1: int
    c2: int
    k: int
    s: int
    g: int
    d: int
    identity: str

    def build(self) -> Conv_C3:
        made = Conv_C3(
            self.c1, self.c2, self.k, self.s, None, self.g, self.d, False, block=self.block, identity=self.identity
        )
        return randomize_(made).eval()


@dataclass(frozen=True)
class Worst:
    """The largest relative error of a block over its `count` cases, and where it was."""

    error: float
    case: Case | None
    count: int


def cases(block: str) -> Iterator[Case]:
    """The grid, each distinct layer once: an input that can be added makes every fixed identity the same."""
    for (c1, c2), k, s, groups, d in product(CHANNELS, KERNELS, STRIDES, GROUPS, DILATIONS):
        g = min(c1, c2) if groups == "depthwise" else int(groups)
        same = ("auto", "conv", "none") if c1 == c2 and s == 1 else IDENTITIES
        for identity in ("none",) if block == "plain" else same:
            yield Case(block, c1, c2, k, s, g, d, identity)


@torch.no_grad()
def worst(block: str, bounds: Mapping[torch.dtype, float]) -> dict[torch.dtype, Worst]:
    """Switch every layer of the grid to deploy in each precision, and compare; stop at an error above its bound."""
    found = {dtype: Worst(-1.0, None, 0) for dtype in bounds}
    torch.manual_seed(0)
    for case in cases(block):
        made, image = case.build(), torch.randn(2, case.c1, *SIZE)
        for dtype in bounds:
            layer, x, before = deepcopy(made).to(dtype), image.to(dtype), found[dtype]
            expected = layer(x)
            layer._switch_to_deploy()
            error = relative_error(expected, layer(x))
            found[dtype] = Worst(*max((before.error, before.case), (error, case), key=itemgetter(0)), before.count + 1)
        if any(found[dtype].error > bound for dtype, bound in bounds.items()):
            break
    return found


def main(names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("block", "layers", "worst in float64", "worst in float32", "of")
    for name in names or sorted(BLOCKS):
        double, single = worst(name, {torch.float64: math.inf, torch.float32: math.inf}).values()
        table.add_row(name, str(double.count), f"{double.error:.1e}", f"{single.error:.1e}", str(single.case))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
