"""What `verify` found, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from math import isfinite
from typing import Any

import torch

END_TO_END = "end to end"


@dataclass(frozen=True)
class Row:
    """Errors of one block, or of the model end to end.

    max_rel: the largest error of a channel, relative to the channel's largest value before.
    beyond_rounding: the same, with the scale of each channel raised by what rounding the weights changes in it. Only
        computed where `max_rel` is out of tolerance.
    """

    name: str
    max_abs: float
    max_rel: float
    beyond_rounding: float | None = None

    @property
    def judged(self) -> float:
        """The relative error that is compared with the tolerance."""
        return self.max_rel if self.beyond_rounding is None else self.beyond_rounding


@dataclass(frozen=True)
class Report:
    """What `verify` found: one row for each block, the last end to end.

    dtype: the arithmetic in which both models were run. tolerance: None where errors are only reported.
    differences: what else is not the same, one sentence each: attributes of the head, integer outputs.
    """

    rows: tuple[Row, ...]
    dtype: torch.dtype
    tolerance: float | None
    differences: tuple[str, ...] = ()

    @property
    def max_abs(self) -> float:
        """The largest absolute error of any row."""
        return max(row.max_abs for row in self.rows)

    @property
    def max_rel(self) -> float:
        """The largest relative error of any row."""
        return max(row.max_rel for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether nothing differs: every error is finite and, where the dtype has a tolerance, within it."""
        return not self.differences and all(self.passes(row) for row in self.rows)

    def passes(self, row: Row) -> bool:
        """Whether the errors of one row are finite and within the tolerance."""
        return isfinite(row.max_abs) and (self.tolerance is None or row.judged <= self.tolerance)

    @property
    def largest_error(self) -> str:
        """The largest relative error in words, and the part that is judged if rounding explains the rest."""
        judged = max(row.judged for row in self.rows)
        beyond = f", {judged:.1e} beyond the rounding of the weights" if judged < self.max_rel else ""
        return f"largest relative error {self.max_rel:.1e}{beyond}"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        judged = "reported only" if self.tolerance is None else f"tolerance {self.tolerance:g} relative"
        arithmetic = str(self.dtype).removeprefix("torch.")
        table = Table(title=f"{len(self.rows) - 1} blocks, {arithmetic} arithmetic, {judged}")
        table.add_column("layer", overflow="fold")
        for column in ("max abs", "max relative", ""):
            table.add_column(column, justify="right")
        for row in self.rows:
            verdict = "FAILS" if not self.passes(row) else "ok" if row.beyond_rounding is None else "ok: rounding"
            table.add_row(Text(row.name), f"{row.max_abs:.2e}", f"{row.max_rel:.2e}", verdict)
        if any(row.beyond_rounding is not None and self.passes(row) for row in self.rows):
            table.caption = "ok: rounding: over the tolerance only by what the rounding of the weights changes"
        return Group(table, *(Text(f"FAILS: {difference}") for difference in self.differences))

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=100).print(self)
        return text.getvalue()
