"""`yolorep compare` on generated images: pairs, a kill and what follows it, the report, and a run that fails."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.helpers import ROOT, write_small
from tests.processes import yolorep
from yolorep import Conv_C3
from yolorep.commands import compare
from yolorep.compare import costs, findings, report
from yolorep.compare.intervals import Interval
from yolorep.compare.plan import Plan, Run, read
from yolorep.compare.runs import epochs_of
from yolorep.compare.stages import Trained
from yolorep.compare.starts import classes_of, dense, make_start
from yolorep.errors import HostError, UsageError
from yolorep.quantization.report import Candidate, QuantizationReport
from yolorep.stock_layers import rep_blocks

ultralytics = pytest.importorskip("ultralytics")
SMALL = ("epochs=3", "imgsz=32", "batch=4", "seeds=2", "lr=1", "jobs=1", "rep=csla", "optimizer=SGD", "lr0=0.01")


def arguments(data: Path) -> list[str]:
    return ["compare", "model=small.yaml", f"data={data}", "out=out", *SMALL]


def start(data: Path, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "yolorep", *arguments(data)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def processes_below(folder: Path) -> list[str]:
    """The processes that were started with this folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture(scope="module")
def compared(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was killed in the middle of a training, and then carried out by the same command."""
    folder = tmp_path_factory.mktemp("compared")
    write_small(folder / "small.yaml")
    process = start(tiny_dataset, folder)
    run = folder / "out" / "csla-seed0-lr1-3"
    wait_for(lambda: (run / "train" / "weights" / "last.pt").is_file() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if sys.platform == "linux":
        wait_for(lambda: not processes_below(Path("out") / run.name), 10)
    assert not (run / "result.json").is_file()
    (folder / "printed.txt").write_text(yolorep(*arguments(tiny_dataset), cwd=folder))
    return folder


def test_a_killed_comparison_goes_on(compared: Path) -> None:
    """The run that ended stays, the one that was killed is resumed, and every epoch is there once."""
    printed = (compared / "printed.txt").read_text()
    assert "equal epochs: stock, seed 0" not in printed  # it had ended before the kill
    assert "equal epochs: csla, seed 0" in printed
    assert "Resuming training" in (compared / "out" / "csla-seed0-lr1-3" / "log.txt").read_text()
    for name in ("stock-seed0-lr1-3", "csla-seed0-lr1-3", "stock-seed1-lr1-3", "csla-seed1-lr1-3"):
        assert [epoch["epoch"] for epoch in epochs_of(compared / "out" / name)] == [1, 2, 3]


def test_the_report_is_whole(compared: Path) -> None:
    out = compared / "out"
    record = json.loads((out / "compare.json").read_text())
    assert {(run["arm"], run["seed"]) for run in record["runs"]} >= {
        ("stock", 0),
        ("csla", 0),
        ("stock", 1),
        ("csla", 1),
    }
    assert record["rows"][1]["equal_epochs"]["seeds"] == 2
    assert all(len(run["curve"]) == run["epochs"] for run in record["runs"])
    assert (out / "compare.png").stat().st_size > 10_000
    text = (out / "compare.md").read_text()
    assert "| csla | x1 |" in text
    assert "csla at equal time:" in text
    table = (out / "compare.tex").read_text()
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert len({row.count("&") for row in rows}) == 1
    assert r"\toprule" in table


def test_the_same_command_trains_nothing_again(compared: Path, tiny_dataset: Path) -> None:
    printed = yolorep(*arguments(tiny_dataset), cwd=compared)
    assert "equal epochs: " not in printed.partition("small.yaml on")[2].partition("points")[0]
    assert "wrote out/compare.json" in printed


def test_8_bits_are_added_to_a_comparison_that_has_ended(compared: Path, tiny_dataset: Path) -> None:
    """Models that detect nothing have no loss in 8 bits: that is said, and the report is written without the column."""
    pytest.importorskip("onnxruntime")
    printed = " ".join(yolorep(*arguments(tiny_dataset), "int8=True", cwd=compared).split())
    assert "equal epochs: stock, seed" not in printed
    for name in ("stock-seed0-lr1-3", "csla-seed1-lr1-3"):
        assert f"{name}: no loss in 8 bits: the float model reaches a mAP50-95 of 0" in printed
    assert "wrote out/compare.json" in printed


def test_losses_in_8_bits_are_gathered_by_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = read([("model", "yolov5n.yaml"), ("data", "data.yaml"), ("seeds", 2), ("lr", 1)], ["csla"])
    runs = {(arm.name, seed, 100): Run(arm, seed, 1.0, 100) for arm in plan.arms for seed in range(2)}
    for run in runs.values():
        (tmp_path / run.name).mkdir()

    def quantize_file(request: Any, console: Any) -> bool:
        if request.source.parents[2].name.startswith("csla-seed0"):
            raise HostError("planted")
        candidates = [{"label": "a", "loss_points": 9}, {"label": "b", "loss_points": 0.5}]
        Path(f"{request.out}.json").write_text(json.dumps({"chosen": "b", "candidates": candidates}))
        return True

    monkeypatch.setattr("yolorep.commands.quantize.quantize_file", quantize_file)
    trained = Trained(tmp_path, {}, {}, {}, {}, runs, {})
    console = Console(file=io.StringIO())
    assert compare.quantized(plan, trained, console) == {"stock": (0.5, 0.5), "csla": (0.5,)}
    assert console.file.getvalue() == "csla-seed0-lr1-100: no loss in 8 bits: planted\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("costs_of_stock", [{"steps": 1}, 3])
def test_a_damaged_record_of_costs_is_refused(costs_of_stock: Any, tmp_path: Path) -> None:
    plan = read([("model", "yolov5n.yaml"), ("data", "data.yaml"), ("lr", 1)], ["csla"])
    (tmp_path / "costs.json").write_text(json.dumps({"stock": costs_of_stock, "csla": costs_of_stock}))
    with pytest.raises(UsageError, match=r"costs.json is not a record of costs; accepted: another out=FOLDER"):
        compare.costs_of(plan, tmp_path / "costs.json", 1)


def test_sizes_between_the_strides_are_rounded_up_as_the_host_does(tiny_dataset: Path) -> None:
    plan = read([("model", "yolov5n.yaml"), ("data", str(tiny_dataset)), ("imgsz", 33), ("batch", 2)], ["csla"])
    assert costs.measure(plan, 1)["csla"].latency > 0


def test_other_settings_are_refused(compared: Path, tiny_dataset: Path) -> None:
    printed = yolorep(*arguments(tiny_dataset), "epochs=4", cwd=compared, code=2)
    assert "out holds a comparison with epochs 3, not 4" in " ".join(printed.split())


def test_a_run_that_fails_names_its_log(tiny_dataset: Path, tmp_path: Path) -> None:
    """An optimizer that the host takes and torch does not have."""
    write_small(tmp_path / "small.yaml")
    printed = yolorep(*arguments(tiny_dataset), "optimizer=Adamax2", cwd=tmp_path, code=2)
    told = " ".join(printed.split())
    assert "the run stock-seed0-lr1-3 failed with exit code 1" in told
    assert "Traceback" not in told
    assert "its output is in out/stock-seed0-lr1-3/log.txt" in told


def test_all_arms_of_a_seed_start_from_the_same_dense_weights(tiny_dataset: Path, tmp_path: Path) -> None:
    files = {}
    for name, rep, seed in (
        ("stock", None, 0),
        ("rep", {"block": "repvgg", "identity": "auto"}, 0),
        ("other", None, 1),
    ):
        files[name] = tmp_path / f"{name}.pt"
        make_start("yolov5n.yaml", str(tiny_dataset), rep, seed, files[name])
    models = {name: ultralytics.YOLO(file).model.state_dict() for name, file in files.items()}
    assert models["rep"].keys() > models["stock"].keys()
    assert all(torch.equal(value, models["rep"][key]) for key, value in models["stock"].items())
    assert not torch.equal(models["other"]["model.0.conv.weight"], models["stock"]["model.0.conv.weight"])


def test_another_network_is_built_for_the_classes_with_its_own_branches(tiny_dataset: Path, tmp_path: Path) -> None:
    """Its `rep:` is carried out, and its costs are measured beside stock's."""
    network = "yolov6n-rep.yaml"
    make_start(network, str(tiny_dataset), None, 0, tmp_path / "start.pt", 32)
    model = ultralytics.YOLO(tmp_path / "start.pt").model
    assert len(rep_blocks(model)) == len(rep_blocks(ultralytics.YOLO(network).model)) > 20
    assert model.model[-1].nc == classes_of(str(tiny_dataset)) != 80
    given = [("model", "yolov6n.yaml"), ("data", str(tiny_dataset)), ("imgsz", 32), ("batch", 2)]
    measured = costs.measure(read(given, [], [network]), 1)
    assert measured["yolov6n-rep"].parameters > measured["stock"].parameters


def test_a_network_is_added_to_a_comparison_that_has_ended(compared: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path, dirs_exist_ok=True)
    write_small(tmp_path / "branched.yaml", rep="acb")
    printed = yolorep(*arguments(tiny_dataset), "network=branched.yaml", cwd=tmp_path)
    assert "equal epochs: branched, seed 1" in printed
    assert "equal epochs: csla" not in printed
    assert "branched at equal epochs: " in printed
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["stock", "csla", "branched"]
    assert rows[2]["cost"]["latency"] != 1.0
    assert rows[2]["equal_time"] is not None


def test_fine_tuning_keeps_the_checkpoint_and_its_function(tiny_dataset: Path, tmp_path: Path) -> None:
    """The head's class layers are new for other classes; they depend on the seed alone."""
    source = tmp_path / "source.pt"
    ultralytics.YOLO("yolov5n.yaml").save(str(source))
    trained = ultralytics.YOLO(source)
    first, again = (dense(ultralytics.YOLO(source), str(tiny_dataset), 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    key = "model.0.conv.weight"
    assert torch.equal(first[key], trained.model.state_dict()[key].float())
    made = {}
    silent: dict[str, Any] = {"block": "repvgg", "identity": "auto"}
    for name, rep in (("stock", None), ("silent", silent), ("split", {**silent, "start": "split"})):
        make_start(str(source), str(tiny_dataset), rep, 0, tmp_path / "start.pt", 64)
        made[name] = ultralytics.YOLO(tmp_path / "start.pt").model.float().eval()
    x = torch.rand(1, 3, 64, 64)
    for name in ("silent", "split"):
        assert torch.allclose(made["stock"](x)[0], made[name](x)[0], rtol=1e-3, atol=1e-3)
    split = next(module for module in made["split"].modules() if isinstance(module, Conv_C3))
    assert split.branch_1x1.bn.weight.abs().max() > 0


def test_a_start_is_the_model_of_an_unfinished_run_and_not_its_old_average(tiny_dataset: Path, tmp_path: Path) -> None:
    source, start = tmp_path / "source.pt", tmp_path / "start.pt"
    ultralytics.YOLO("yolov5n.yaml").save(str(source))
    content = torch.load(source, weights_only=False)
    other = ultralytics.YOLO("yolov5n.yaml").model.half()
    torch.save({**content, "ema": other, "epoch": 7, "optimizer": {}}, source)
    make_start(str(source), str(tiny_dataset), None, 0, start)
    saved = torch.load(start, weights_only=False)
    assert saved["ema"] is None
    key = "model.0.conv.weight"
    assert torch.equal(ultralytics.YOLO(start).model.state_dict()[key], other.float().state_dict()[key])


def row(arm: str, **more: Any) -> findings.Row:
    cost = costs.Cost(1.0, 1.0, 1.0, 100)
    return findings.Row(arm, 1.0, 0.5, 0.4, more.get("epochs"), more.get("time"), 12, 1.2, cost, more.get("int8", ()))


def test_verdicts_say_what_can_be_said() -> None:
    assert "better than stock" in findings.verdict(Interval(0.02, 0.01, 3, 0.004, 0.0))
    assert "worse than stock" in findings.verdict(Interval(-0.02, 0.01, 3, 0.004, 0.0))
    assert "no difference that this data can show; 6 seeds" in findings.verdict(Interval(0.010, 0.024, 3, 0.0095, 0.0))
    assert "more validation images would" in findings.verdict(Interval(0.001, 0.03, 3, 0.001, 0.01))
    assert "one seed, which shows nothing" in findings.verdict(Interval(0.1, float("inf"), 1, float("inf"), 0.0))


def test_the_column_of_8_bits_is_there_where_it_was_measured() -> None:
    plan: Plan = read([("model", "a.yaml"), ("data", "b/data.yaml")], ())
    pair = Interval(0.01, 0.02, 3, 0.01, 0.0)
    plain = [row("stock"), row("repvgg", epochs=pair, time=pair)]
    quantized = [row("stock", int8=(0.1, 0.3)), row("repvgg", epochs=pair, time=pair, int8=(1.0, 2.0))]
    assert "INT8" not in report.markdown(plan, plain, []).partition("\n\n")[2].partition("\n")[0]
    text = report.markdown(plan, quantized, [])
    assert text.splitlines()[2].endswith("| INT8 loss |")
    assert "| +0.20 |" in text
    assert "| +1.50 |" in text
    assert r"$+$1.50" in report.latex(plan, quantized)


def test_a_report_names_the_data_and_what_its_figures_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data.yaml, in the working directory too, is named by its folder."""
    folder = tmp_path / "cells"
    folder.mkdir()
    monkeypatch.chdir(folder)
    said = {"epochs": 1, "seeds": 1, "lr": 1}
    plan = read([("model", "a.yaml"), ("data", "data.yaml"), *said.items()], ())
    assert report.title(plan).startswith("a.yaml on cells: 1 epoch, 640 px, ")
    assert report.title(plan).endswith(", 1 seed")
    assert "are the mean of all epochs (EMA weights)" in report.markdown(plan, [row("stock")], [])
    longer = read([("model", "a.yaml"), ("data", "data.yaml"), *{**said, "epochs": 9, "seeds": 2}.items()], ())
    assert report.title(longer).endswith(", 2 seeds")
    assert "are the mean of the last 3 epochs (EMA weights)" in report.markdown(longer, [row("stock")], [])
    assert report.screen(plan, [row("stock")]).caption == report.UNITS


def test_the_loss_in_8_bits_is_read_from_the_report_of_quantize(tmp_path: Path) -> None:
    plan: Plan = read([("model", "a.yaml"), ("data", "b/data.yaml")], ())
    made = QuantizationReport("mAP50-95", 0.5, [Candidate("float32", {"mAP50-95": 0.5}, 4)])
    made.candidates += [Candidate(name, {"mAP50-95": 0.5 - loss}, 1) for name, loss in (("a", 0.3), ("b", 0.004))]
    made.seconds = {"float32": 1.0, "a": 1.0, "b": 1.0}
    (tmp_path / "int8.onnx.json").write_text(json.dumps(made.record()))
    assert compare._drop(tmp_path, plan, Console()) == pytest.approx(0.4)
