"""Every geometry that a `Conv_C3` can have, folded: the worst error of each block, as a test and as a table.

`python -m tests.blocks.grid [BLOCK ...]` prints the table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

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
def worst(block: str, dtype: torch.dtype, until: float = math.inf) -> Worst:
    """Switch every layer of the grid to deploy, and compare; stop at an error above `until`."""
    error, at, count = -1.0, None, 0
    for case in cases(block):
        torch.manual_seed(count)
        layer = case.build().to(dtype)
        x = torch.randn(2, case.c1, *SIZE, dtype=dtype)
        expected = layer(x)
        layer._switch_to_deploy()
        found = relative_error(expected, layer(x))
        error, at, count = (found, case, count + 1) if found > error else (error, at, count + 1)
        if error > until:
            break
    return Worst(error, at, count)


def main(names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("block", "layers", "worst in float64", "worst in float32", "of")
    for name in names or sorted(BLOCKS):
        double, single = worst(name, torch.float64), worst(name, torch.float32)
        table.add_row(name, str(double.count), f"{double.error:.1e}", f"{single.error:.1e}", str(single.case))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
