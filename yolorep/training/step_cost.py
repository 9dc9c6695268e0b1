"""What a training step of a block costs, as recorded; `tests/training/test_step_cost.py` compares with the records."""

from __future__ import annotations

# Forward and backward of one block, in units of convolution + batch norm + SiLU: the least and the largest median of
# its settings in `RECORDS`, on 2 cores of a CPU.
STEP_COST = {
    "acb": (1.95, 2.06),
    "csla": (1.00, 1.03),
    "dbb": (2.91, 3.23),
    "mobileone": (4.31, 4.47),
    "orepa": (1.11, 1.15),
    "qarepvgg": (1.33, 1.46),
    "repvgg": (1.35, 1.67),
}
RECORDS = (
    "benchmarks/results/training.json",
    "benchmarks/results/training-fresh.json",
    "benchmarks/results/training-csla.json",
)


def step_cost(block: str) -> str:
    """Return the sentence about the cost of a block's training step; empty for a block that was not measured.

    block: as in a request; options make it another block.

    Example:
        >>> step_cost("orepa")
        'a training step of such a block takes 1.11 to 1.15 times as long as without branches (2 CPU cores; record: benchmarks/results/training.json in the repository of yolorep)'
        >>> step_cost("mobileone(branches=6)")
        ''
    """  # noqa: E501
    if block not in STEP_COST:
        return ""
    low, high = STEP_COST[block]
    record = RECORDS[2] if block == "csla" else RECORDS[0]
    return (
        f"a training step of such a block takes {low:.2f} to {high:.2f} times as long as without branches "
        f"(2 CPU cores; record: {record} in the repository of yolorep)"
    )
