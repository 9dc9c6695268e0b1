"""`python -m benchmarks equal-latency`: the search, and its record."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import equal_latency, runner
from benchmarks.equal_latency import NETWORK, RUNTIMES, STOCK, scaled
from tests.processes import run as run_program
from yolorep.bench.timing import Timing
from yolorep.hosts.ultralytics.build import build

pytest.importorskip("ultralytics")
BOTH = {"width": 1.0, "depth": 1.0}


def search(folder: Path, *arguments: str) -> dict:
    before = torch.get_num_threads()
    try:
        runner.main(["equal-latency", *arguments, "--threads", "1", "--rounds", "2", "--out", str(folder)])
    finally:
        torch.set_num_threads(before)
    return json.loads((folder / "equal-latency.json").read_text())


ALONE = """
import sys
from benchmarks import runner
from yolorep.bench import timing
timing.SAMPLE_SECONDS = 0.002
runner.main(["equal-latency", *sys.argv[1:], "--threads", "1", "--rounds", "2"])
"""


def test_it_runs_on_a_tiny_input(tmp_path: Path) -> None:
    """Run in a separate process: after the tests of other runtimes, the process crashed here (SIGSEGV)."""
    for runtime in RUNTIMES:
        if find_spec(runtime) is None:
            pytest.skip(f"optional runtime: {runtime}")
    arguments = ("yolov5n-csprepresnet.yaml", "--imgsz", 64, "--trials", 2, "--out", tmp_path)
    run_program(ALONE, *arguments, cwd=tmp_path, fresh=True)
    record = json.loads((tmp_path / "equal-latency.json").read_text())
    assert {"machine", "packages", "network", "stock", "rounds", "tolerance", "found"} <= record.keys()
    assert 1 <= len(record["results"]) <= 2
    assert record["best"] in record["results"]
    first = record["results"][0]
    assert first["factor"] == 1
    assert first["parameters"] < 2_398_440  # deployed and fused
    assert {name: set(forms) for name, forms in first["ms"].items()} == {key: {STOCK, NETWORK} for key in RUNTIMES}


@pytest.mark.parametrize("only", ["width", "depth", None])
def test_the_search_ends_at_stocks_latency(only: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts parameters."""
    monkeypatch.setattr("yolorep.bench.backends.table.Backend.missing", lambda *_: None)
    sizes = {}

    def timed(models: dict, size: int, rounds: int) -> Timing:
        sizes.update({name: float(sum(p.numel() for p in model.parameters())) for name, model in models.items()})
        named = {f"{name}, {runtime}": value for name, value in sizes.items() for runtime in RUNTIMES}
        return Timing(1, {name: [value] * rounds for name, value in named.items()})

    monkeypatch.setattr(equal_latency, "timed", timed)
    asked = ["--only", only] if only else []
    record = search(tmp_path, "yolov5n-efficientrep.yaml", "--tolerance", "0.2", *asked)
    ratios = [trial["ratio"] for trial in record["results"]]
    assert ratios[0] == pytest.approx(4_479_504 / 2_654_816, rel=0.01)
    assert abs(record["best"]["ratio"] - 1) == min(abs(ratio - 1) for ratio in ratios) < 0.25
    written = build(str(tmp_path / "equal-latency.yaml"))
    assert sum(p.numel() for p in written.parameters()) >= record["best"]["parameters"]
    assert written.yaml["width_multiple"] == record["best"]["width"]
    changed = {axis for axis in BOTH if record["best"][axis] != record["results"][0][axis]}
    assert changed == ({only} if only else set(BOTH))


@pytest.mark.parametrize("name", ["yolov5n-efficientrep.yaml", "yolov6n-rep.yaml"])
def test_multiples_are_scaled_wherever_they_are_written(name: str) -> None:
    content = scaled(name, {"width": 2.0, "depth": 0.5})
    assert (content["width_multiple"], content["depth_multiple"], content.get("scales")) == (0.5, 0.165, None)
    assert scaled(name, BOTH)["width_multiple"] == 0.25


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--device", "cuda", "times ONNX Runtime and OpenVINO on the CPU, not on cuda"),
        ("--trials", "0", "--trials is 0; accepted: 1 or more"),
    ],
)
def test_a_wrong_option_is_one_sentence(option: str, value: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=says):
        search(tmp_path, option, value)
