"""The costs that training announces are those of the records."""

from __future__ import annotations

import json

import pytest

from tests.helpers import ROOT
from yolorep.training.step_cost import RECORDS, STEP_COST


def test_costs_are_the_records() -> None:
    found: dict[str, list[float]] = {}
    for record in RECORDS:
        for result in json.loads((ROOT / record).read_text())["results"]:
            steps = [form["step_of_stock"]["median"] for name, form in result["forms"].items() if name != "stock"]
            found.setdefault(result["block"], []).extend(steps)
    assert sorted(found) == sorted(STEP_COST)
    for block, steps in found.items():
        assert STEP_COST[block] == pytest.approx((min(steps), max(steps)), abs=0.005), block


@pytest.mark.parametrize("page", ["blocks.md", "when-it-pays.md", "zh/blocks.md", "zh/when-it-pays.md"])
def test_the_pages_have_the_costs_that_training_announces(page: str) -> None:
    rows = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| ")]
    for block, (low, high) in STEP_COST.items():
        own = [line for line in rows if f"`{block}`" in line.split("|")[1]]
        assert any(f"{low:.2f}\N{EN DASH}{high:.2f}" in line for line in own), block
