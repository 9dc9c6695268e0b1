"""What a comparison of backends found: a row for every form in every backend."""

from __future__ import annotations

from dataclasses import dataclass

from yolorep.bench.agreement import Agreement
from yolorep.bench.backends.table import REFERENCE
from yolorep.bench.subjects import DEPLOYED
from yolorep.bench.timing import Timing


@dataclass(frozen=True)
class Row:
    """One form in one backend.

    error: why it was not timed; the fields after it are then empty. memory: growth of the process (CPU) or of allocated
    GPU memory by loading and running it, bytes. file: size of the exported file, bytes.
    """

    form: str
    backend: str
    precision: str
    error: str | None = None
    agreement: Agreement | None = None
    memory: int | None = None
    file: int | None = None

    @property
    def name(self) -> str:
        return f"{self.form}, {self.backend}"


@dataclass(frozen=True)
class Comparison:
    """All rows of one model at one batch and size.

    timing: of the rows without error. images: how many were checked. own_images: whether they are the user's. steps: of
    pre-processing and NMS; None for a model without boxes.
    """

    what: str
    batch: int
    size: int
    rows: list[Row]
    timing: Timing
    images: int
    calibration: int
    device: str = "cpu"
    steps: Timing | None = None
    own_images: bool = False

    @property
    def reference(self) -> str:
        """Return the name of the row that is the unit: the deployed model, eager, float32, as the hosts run it."""
        return f"{DEPLOYED}, {REFERENCE}"

    @property
    def compared(self) -> str:
        """Return what the backends were compared by: boxes, or the outputs where there are none to compare."""
        found = any(row.agreement and row.agreement.boxes for row in self.timed)
        return "boxes" if self.steps and found else "outputs"

    @property
    def timed(self) -> list[Row]:
        """Return the rows that were timed."""
        return [row for row in self.rows if row.error is None]

    def seconds(self, row: Row) -> float:
        """Return the median time of a call of the network."""
        return self.timing.time(row.name).median

    def fastest(self, *verdicts: str) -> Row | None:
        """Return the fastest row that a user would deploy and whose boxes have one of these verdicts."""
        rows = [r for r in self.timed if r.form == DEPLOYED and r.agreement and r.agreement.verdict in verdicts]
        return min(rows, key=self.seconds, default=None)
