"""`yolorep bench` checks each backend before it times it, refuses wrong input, and recommends a backend."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from time import sleep

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.helpers import sure_
from yolorep.bench import Settings, of_block, of_model, timing
from yolorep.bench.agreement import CLOSE, DIFFERENT, SAME, Agreement, agreement
from yolorep.bench.backend_comparison import NMS, PREPROCESS, chosen, compare_backends
from yolorep.bench.backend_report import ULTRALYTICS, YOLOV5, commands, notes, plot
from yolorep.bench.backend_rows import Comparison, Row
from yolorep.bench.backends.job import Backend, Job, Running
from yolorep.bench.backends.table import BACKENDS, TABLE
from yolorep.bench.subjects import DEPLOYED, STOCK, UNFUSED
from yolorep.bench.timing import Timing
from yolorep.cli import app
from yolorep.commands.list_options import BACKEND_NAMES
from yolorep.errors import UsageError, YolorepError

QUICK = Settings(sizes=(64,), rounds=2, threads=1)
CPU = torch.device("cpu")
EAGER = BACKENDS["eager"]
invoke = CliRunner().invoke


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.002)


@pytest.fixture
def finder(rep: nn.Module) -> nn.Module:
    """A rep detector that finds boxes."""
    for norm in (m for m in rep.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-3  # the host's, which its stock model has
    return sure_(rep)


@pytest.fixture
def checkpoint(finder: nn.Module, tmp_path: Path) -> Path:
    file = tmp_path / "rep.pt"
    torch.save({"model": finder, "train_args": {}}, file)
    return file


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[x, 0.0, x + 10, 10.0, confidence, label] for x, confidence, label in rows]).reshape(-1, 6)


def judged(a: Tensor, b: Tensor) -> Agreement:
    return agreement([torch.ones(1)], [torch.ones(1)], [a], [b])


@pytest.mark.parametrize(
    ("a", "b", "verdict", "share"),
    [
        (boxes((0, 0.9, 1), (50, 0.8, 0)), boxes((50, 0.8, 0), (0, 0.9, 1)), SAME, 1.0),
        (boxes((0, 0.9, 1)), boxes((0.4, 0.9, 1)), SAME, 1.0),
        (boxes((0, 0.251, 1)), boxes((0, 0.2495, 1)), CLOSE, 1.0),  # at the threshold, and moved by more than rounding
        (boxes((0, 0.9, 1)), boxes((0, 0.9, 2)), DIFFERENT, 0.0),  # another class
        (boxes((0, 0.9, 1)), boxes((3, 0.9, 1)), DIFFERENT, 0.0),  # elsewhere
        (boxes((0, 0.9, 1)), boxes((0, 0.9, 1), (50, 0.9, 1)), DIFFERENT, 2 / 3),  # one more
        (boxes((0, 0.9, 1), (50, 0.9, 1)), boxes((0, 0.9, 1)), DIFFERENT, 2 / 3),  # one less
    ],
)
def test_agreement_of_boxes(a: Tensor, b: Tensor, verdict: str, share: float) -> None:
    found = judged(a, b)
    assert (found.verdict, found.share) == (verdict, pytest.approx(share))


@pytest.mark.parametrize(
    ("got", "verdict"),
    [(1.0, SAME), (1.01, CLOSE), (2.0, DIFFERENT), (float("nan"), DIFFERENT)],
)
def test_agreement_of_outputs_where_there_are_no_boxes(got: float, verdict: str) -> None:
    assert agreement([torch.ones(3)], [torch.full((3,), got)]).verdict == verdict
    assert agreement([torch.ones(3)], [torch.ones(4)]).verdict == DIFFERENT
    assert agreement([torch.ones(3)], []).verdict == DIFFERENT


def test_every_form_is_checked_and_timed_in_turns(finder: nn.Module) -> None:
    backends = chosen(["eager", "channels_last", "bfloat16"])
    (found,) = compare_backends(of_model("rep", finder), replace(QUICK, batches=(2,)), backends)
    assert [row.form for row in found.rows[:3]] == [DEPLOYED] * 3
    assert {row.form for row in found.rows} == {UNFUSED, DEPLOYED, STOCK}
    assert {row.backend for row in found.timed} == {"eager", "channels_last", "bfloat16"}
    assert {len(samples) for samples in found.timing.seconds.values()} == {2}
    assert found.steps is not None
    assert {step: len(samples) for step, samples in found.steps.seconds.items()} == {PREPROCESS: 2, NMS: 2}
    exact = [row for row in found.timed if row.precision == "float32"]
    assert all(row.agreement and row.agreement.verdict == SAME and row.agreement.boxes for row in exact)


def broken(change: Callable[[Tensor], Tensor]) -> Backend:
    def start(job: Job) -> Running:
        running = EAGER.start(job)
        return replace(running, outputs=lambda result: [change(tensor) for tensor in running.outputs(result)])

    return Backend("fast", start)


def test_a_backend_that_finds_other_boxes_is_said_and_never_recommended(finder: nn.Module) -> None:
    wrong = broken(lambda predictions: predictions * torch.tensor([1.3, 1, 1, 1] + [1.0] * 80)[:, None])
    (found,) = compare_backends(of_model("rep", finder), QUICK, [EAGER, wrong])
    row = next(row for row in found.rows if row.backend == "fast" and row.form == DEPLOYED)
    assert row.agreement is not None
    assert row.agreement.verdict == DIFFERENT
    told = "\n".join(notes(found, "rep.pt", "ultralytics"))
    assert "deployed, fast finds other boxes than float32 PyTorch" in told
    assert "fastest with the same boxes: eager" in told
    assert found.fastest(SAME, CLOSE) is not row


def test_a_backend_that_fails_is_a_row_with_its_reason(finder: nn.Module) -> None:
    def fail(job: Job) -> Running:
        raise RuntimeError("unsupported operator\nat node 7")

    absent = Backend("absent", fail, needs=("nonesuch_runtime",), install="python -m pip install nonesuch")
    (found,) = compare_backends(of_model("rep", finder), QUICK, [EAGER, Backend("failing", fail), absent])
    errors = {row.backend: row.error for row in found.rows if row.error}
    assert errors == {
        "failing": "RuntimeError: unsupported operator",
        "absent": "nonesuch_runtime is not installed: python -m pip install nonesuch",
    }
    told = list(notes(found, None, "ultralytics"))
    assert "not timed: absent: nonesuch_runtime is not installed: python -m pip install nonesuch" in told


def test_a_backend_that_is_far_slower_is_not_timed(finder: nn.Module) -> None:
    def start(job: Job) -> Running:
        running = EAGER.start(job)

        def call() -> object:
            sleep(2)
            return running.call()

        return replace(running, call=call)

    backends = [EAGER, Backend("sleepy", start)]
    (found,) = compare_backends(of_model("rep", finder), QUICK, backends, images=_image(Path(mkdtemp())))
    (row,) = [row for row in found.rows if row.backend == "sleepy"]
    assert re.fullmatch(r"it takes \d+ times as long as eager in float32", row.error or "")


def test_a_pause_of_the_machine_drops_no_backend(finder: nn.Module) -> None:
    (plain,) = compare_backends(of_model("rep", finder), QUICK, [EAGER])
    # After the warm-up and the check of the outputs, one call for every image: the first call that is judged.
    pauses = iter([0] * (1 + plain.images) + [2])

    def start(job: Job) -> Running:
        running = EAGER.start(job)
        return replace(running, call=lambda: (sleep(next(pauses, 0)), running.call())[1])

    (found,) = compare_backends(of_model("rep", finder), QUICK, [EAGER, Backend("paused", start)])
    assert next(pauses, None) is None, "the pause was not reached"
    assert [row.error for row in found.rows if row.backend == "paused"] == [None]


def test_a_form_that_is_not_timed_is_named_where_another_form_is() -> None:
    rows = [Row(DEPLOYED, "eager", "float32"), *(Row(f, "eager", "float32", error="slow") for f in (UNFUSED, STOCK))]
    rows.append(Row(DEPLOYED, "half", "float16", error="slow"))
    found = Comparison("rep", 1, 64, rows, Timing(1, {f"{DEPLOYED}, eager": [1.0, 1.0]}), images=1, calibration=1)
    assert f"not timed: {UNFUSED} eager, {STOCK} eager, half: slow" in list(notes(found, None, "ultralytics"))


@pytest.mark.parametrize(("own_images", "hint"), [(False, "; --images FOLDER takes yours"), (True, "")])
def test_that_no_boxes_were_found_is_said(own_images: bool, hint: str) -> None:
    rows = [Row(DEPLOYED, "eager", "float32", agreement=Agreement(0.0, boxes=0))]
    seconds = Timing(1, {f"{DEPLOYED}, eager": [1.0, 1.0]})
    found = Comparison("x", 1, 64, rows, seconds, 2, 2, steps=Timing(1, {NMS: [1.0, 1.0]}), own_images=own_images)
    first, second, *_ = notes(found, "rep.pt", "ultralytics")
    assert first == f"no box has a confidence of 0.25 on the 2 images, so outputs were compared{hint}"
    assert second.startswith("fastest with the same outputs: eager")


def test_the_legend_covers_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    seconds = {f"{DEPLOYED}, {name}": [value, value] for name, value in (("eager", 1.0), ("half", 1.1), ("ncnn", 1.15))}
    rows = [Row(*name.split(", "), "float32") for name in seconds]
    plot([Comparison("rep.pt", 1, 64, rows, Timing(1, seconds), images=1, calibration=1)], QUICK, tmp_path / "x.png")
    drawn[0].canvas.draw()
    (axis,) = drawn[0].axes
    legend = axis.get_legend()
    assert legend is not None
    assert len(axis.texts) == 3
    assert not [text.get_text() for text in axis.texts if text.get_window_extent().overlaps(legend.get_window_extent())]


def test_every_backend_of_the_table_names_what_it_needs_and_how_it_is_run() -> None:
    assert list(BACKEND_NAMES) == ["all", *BACKENDS]
    for backend in TABLE:
        assert bool(backend.needs) == bool(backend.install)
        for host in (ULTRALYTICS, YOLOV5):
            assert backend.name in host
    for host in ("ultralytics", "yolov5"):
        quantize, run = commands("openvino-int8", "runs/best.pt", 640, host)
        options = {word for word in quantize.split() if word.startswith("--")}
        assert options <= set(invoke(app, ["quantize", "--help"]).output.split())
        assert quantize.split()[3] in run
        lines = [line for name in BACKENDS for line in commands(name, "runs/best.pt", 640, host)]
        assert not [line for line in lines if "{" in line]
    assert commands("onnxruntime", "best.pt", 320, "ultralytics") == [
        "yolorep export model=best.pt imgsz=320 format=onnx",
        "yolorep predict model=best.onnx source=IMAGES",
    ]


def test_the_commands_that_are_printed_are_accepted(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.processes import yolorep
    from yolorep.bench.host_steps import pictures

    assert pictures(None, 1)
    for line in commands("onnxruntime", str(checkpoint), 64, "ultralytics"):
        arguments = line.replace("IMAGES", str(_image(tmp_path))).split()[1:]
        yolorep(*arguments, cwd=tmp_path)
    assert checkpoint.with_suffix(".onnx").is_file()


def _image(folder: Path) -> Path:
    import cv2
    import numpy as np

    file = folder / "image.png"
    cv2.imwrite(str(file), np.zeros((64, 64, 3), np.uint8))
    return file


def test_runtimes_of_exported_files_agree_with_pytorch(finder: nn.Module) -> None:
    """Those that are installed; CI has ONNX Runtime, and OpenVINO where it can be had."""
    names = [name for name in ("onnxruntime", "openvino", "ncnn") if BACKENDS[name].missing(CPU) is None]
    assert "onnxruntime" in names
    (found,) = compare_backends(of_model("rep", finder), replace(QUICK, batches=(2,)), chosen(names))
    rows = {row.backend: row for row in found.rows if row.form == DEPLOYED}
    for name in names:
        assert rows[name].error is None, rows[name].error
        assert rows[name].agreement is not None
        assert rows[name].agreement.verdict == SAME, rows[name].agreement
        assert (rows[name].file or 0) > 2**20


def test_a_buffer_of_five_dimensions_is_no_obstacle_to_channels_last(finder: nn.Module) -> None:
    """As in older YOLOv5 trees' models."""
    finder.register_buffer("anchor_grid", torch.zeros(3, 1, 3, 1, 2))
    (found,) = compare_backends(of_model("rep", finder), QUICK, chosen(["channels_last"]))
    assert [row.error for row in found.rows if row.backend == "channels_last"] == [None, None, None]


def test_another_task_is_checked_by_its_outputs() -> None:
    from ultralytics.nn.tasks import SegmentationModel

    model = SegmentationModel("yolov8n-seg.yaml", verbose=False).eval()
    (found,) = compare_backends(of_model("seg", model), QUICK, chosen(["channels_last"]))
    assert found.steps is None
    assert all(row.agreement and row.agreement.boxes is None for row in found.timed)
    assert {row.agreement.verdict for row in found.timed if row.agreement} == {SAME}


def test_the_command_compares_the_backends_of_a_checkpoint_by_default(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(BACKENDS) - {"eager", "channels_last", "tensorrt"}:
        monkeypatch.delitem(BACKENDS, name)
    out = tmp_path / "[red]out[/b]"
    conditions = ["--imgsz", "64", "--rounds", "2", "--device", "cpu", "--threads", "1"]
    result = invoke(app, ["bench", str(checkpoint), *conditions, "--out", str(out)])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "not timed: tensorrt: runs only on cuda" in words
    assert "fastest with the same boxes: " in words
    assert "1 thread, 2 interleaved rounds" in words
    assert f"yolorep predict model={checkpoint}" in words or "in Python: model.to" in words
    assert str(out) in words
    (record,) = json.loads((out / "bench.json").read_text())["results"]
    assert record["what"] == str(checkpoint)
    assert set(record["stages"]) == {PREPROCESS, NMS}
    assert {row["backend"] for row in record["rows"]} == {"eager", "channels_last", "tensorrt"}
    timed = [row for row in record["rows"] if row["error"] is None]
    assert all(len(row["seconds"]) == 2 and row["memory"] is not None and row["verdict"] for row in timed)
    assert record["fastest"]["same"]
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["repvgg", "--backends", "eager"], "repvgg has no boxes to check; accepted with --backends: checkpoints"),
        (["yolov5n-rep.yaml", "--backends", "nonesuch"], "backend 'nonesuch' is unknown; accepted: all, eager"),
        (["yolov5n-rep.yaml", "--backends", "eager", "--imgsz", "100"], "multiples of 32, not 100"),
        (["yolov5n-rep.yaml", "--backends", "eager", "--images", "nonesuch"], "neither an image nor a folder"),
        (["none.pt"], "none.pt does not exist"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(arguments: list[str], told: str, tmp_path: Path) -> None:
    result = invoke(app, ["bench", *arguments, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, YolorepError), result.output
    with pytest.raises(YolorepError, match=re.escape(told)):
        raise result.exception
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_image_is_named(finder: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UsageError, match=r"text\.png cannot be read as an image"):
        compare_backends(of_model("rep", finder), QUICK, [EAGER], images=tmp_path)


def test_markup_in_a_name_is_printed_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    odd = tmp_path / "[b]" / "[red]odd.pt"
    odd.parent.mkdir()
    odd.write_bytes(checkpoint.read_bytes())
    options = ["--imgsz", "64", "--rounds", "2", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "[/i]")]
    for chosen_form in (["--backends", "eager"], ["--precision", "bfloat16"]):
        result = invoke(app, ["bench", str(odd), *chosen_form, *options])
        assert result.exit_code == 0, (result.output, result.exception)
        assert "[red]odd" in "".join(result.output.split())


def test_blocks_keep_their_table(tmp_path: Path) -> None:
    assert of_block("repvgg", 4).name == "repvgg"
    empty = Timing(1, {"deployed, eager": [1.0, 1.0]})
    rows = [Row(DEPLOYED, "eager", "float32", agreement=Agreement(0.0))]
    found = Comparison("x", 1, 64, rows, empty, 2, 2)
    assert found.fastest(SAME) == rows[0]
    assert found.fastest(DIFFERENT) is None
