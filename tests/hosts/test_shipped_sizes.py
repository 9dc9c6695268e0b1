"""What `yolorep models` tells of the shipped models is what they have."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.eligibility import sizes
from tests.helpers import ROOT
from yolorep.hosts.shipped import shipped
from yolorep.hosts.shipped_sizes import SIZES
from yolorep.hosts.ultralytics.build import build
from yolorep.stock_layers import rep_blocks

pytest.importorskip("ultralytics")
LARGE = 40_000_000  # parameters; of a detector, which cannot be built on the meta device


def test_every_shipped_model_has_a_size() -> None:
    assert sorted(SIZES) == sorted(shipped())


@pytest.mark.parametrize("name", [n for n, size in SIZES.items() if n.startswith("repvgg") or size.trained < LARGE])
def test_size_is_that_of_the_model(name: str) -> None:
    classifier = name.startswith("repvgg")
    with torch.device("meta" if classifier else "cpu"):
        model = build(name)
        image = torch.rand(1, 3, 224, 224) if classifier else torch.rand(1, 3, 64, 64)
    blocks = [model.get_submodule(layer) for layer in rep_blocks(model)]
    branches = sum(p.numel() for block in blocks for _, branch in block.branches() for p in branch.parameters())  # type: ignore[operator]
    trained = sum(p.numel() for p in model.parameters())
    assert SIZES[name][:4] == ("+".join({b.block for b in blocks}), len(blocks), trained, trained - branches)
    products = sizes(model.eval(), image)[1]  # of 64 pixels: a hundredth of those of 640
    dense = sum(number for layer, number in products.items() if ".branch_" not in layer)
    flops = [(2 if classifier else 200) * number / 1e9 for number in (sum(products.values()), dense)]
    assert [SIZES[name].flops, SIZES[name].deployed_flops] == [round(number, 2) for number in flops]


def test_latencies_are_those_of_a_record() -> None:
    recorded = {}
    for file in (ROOT / "benchmarks" / "results").glob("backends-*.json"):
        for result in json.loads(file.read_text())["results"]:
            if (result["batch"], result["size"]) == (1, 640):
                rows = [r for r in result["rows"] if (r["form"], r["backend"]) == ("deployed", "openvino")]
                recorded[result["what"]] = round(rows[0]["ms"], 1)
    told = {name: size.latency for name, size in SIZES.items() if size.latency is not None}
    assert told == {name: ms for name, ms in recorded.items() if name in SIZES}
    assert told
