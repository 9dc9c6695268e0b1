import json
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn
from torch.fx.experimental import optimization
from typer.testing import CliRunner

from tests.helpers import assert_same, randomize_, relative_error
from yolorep import Conv_C3, deploy, expand
from yolorep.bench import Settings, Spread, Timing, bench, interleave, of_block, of_model, of_name, timing
from yolorep.bench.report import plot
from yolorep.bench.subjects import CONVOLUTION, DEPLOYED, STOCK, UNFUSED, beside
from yolorep.cli import app
from yolorep.commands.list_options import spread
from yolorep.errors import UsageError, YolorepError

CPU = torch.device("cpu")
QUICK = Settings(sizes=(32,), rounds=2, threads=1)
LARGEST_PAGE = 2**21  # bytes that one fault may bring, where the system backs memory with huge pages
SIXTY_LAYERS = 1e-4  # folded and fused in float32, and compared at the end of a fresh network
invoke = CliRunner().invoke


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.002)


def test_interleave_takes_one_sample_of_each_in_turn() -> None:
    order: list[str] = []
    subjects = {name: lambda name=name: order.append(name) or torch.rand(400, 400).svd() for name in "ABC"}

    result = interleave(subjects, rounds=3, device=CPU)

    # A sample is one call that is not timed and `calls` that are.
    rounds = order[-3 * 3 * (result.calls + 1) :]
    assert rounds[:: result.calls + 1] == list("ABC") * 3
    assert {name: len(seconds) for name, seconds in result.seconds.items()} == {"A": 3, "B": 3, "C": 3}


def test_interleave_times_a_single_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)
    subjects = {name: lambda s=s: setattr(clock, "now", clock.now + s) for name, s in (("a", 2**-12), ("b", 2**-10))}

    result = interleave(subjects, 3, CPU)

    assert result.calls == round(timing.SAMPLE_SECONDS * 2**12)
    assert result.seconds == {"a": [2**-12] * 3, "b": [2**-10] * 3}
    assert result.ratio("b", "a") == Spread(4, 4, 4)


def test_page_faults_are_counted_within_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    count = SimpleNamespace(now=5000)
    monkeypatch.setattr(timing, "page_faults", lambda: count.now)
    monkeypatch.setattr(timing, "counts_page_faults", lambda: True)
    subjects = {name: lambda n=n: setattr(count, "now", count.now + n) for name, n in (("a", 3), ("b", 0))}
    assert interleave(subjects, 2, CPU).page_faults == {"a": [3, 3], "b": [0, 0]}


@pytest.mark.parametrize("stuck_at", [0, 5000])
def test_a_count_of_page_faults_that_stands_still_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stuck_at: int
) -> None:
    monkeypatch.setattr(timing, "page_faults", lambda: stuck_at)
    monkeypatch.setattr(timing, "counts_page_faults", timing.counts_page_faults.__wrapped__)
    result = invoke(app, ["bench", "repvgg", "--imgsz", "8", "--rounds", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    runs = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert {form["page_faults"] for run in runs for form in run["forms"].values()} == {None}


@pytest.mark.skipif(not timing.counts_page_faults(), reason="this system does not count page faults")
def test_page_faults_are_those_of_memory_that_is_fresh() -> None:
    size = 2**26
    kept = np.ones(size, dtype=np.uint8)

    def write_fresh() -> None:
        np.frombuffer(mmap(-1, size), dtype=np.uint8).fill(1)

    faults = interleave({"fresh": write_fresh, "kept": lambda: kept.fill(1)}, 2, CPU).page_faults
    assert faults is not None
    assert min(faults["fresh"]) >= size / LARGEST_PAGE
    assert max(faults["kept"]) < size / LARGEST_PAGE / 2


def test_ratio_is_taken_within_a_round() -> None:
    drifting = Timing(1, {"a": [2.0, 4.0, 20.0, 8.0], "b": [1.0, 2.0, 10.0, 4.0]})
    assert drifting.ratio("a", "b") == Spread(2, 2, 2)
    assert drifting.time("b") == Spread(3.0, 1.75, 5.5)


@pytest.mark.parametrize("block", ["repvgg", "plain"])
def test_forms_of_a_block_are_what_they_are_called(block: str) -> None:
    forms = of_block(block, 8).forms
    x = torch.rand(1, 8, 16, 16)
    assert list(forms) == [UNFUSED, DEPLOYED, STOCK, CONVOLUTION]
    assert not any(form.training for form in forms.values())
    assert [forms[name].deployed for name in (UNFUSED, DEPLOYED)] == [False, True]
    assert [type(m) for m in forms[STOCK].children()] == [nn.Conv2d, nn.BatchNorm2d, nn.SiLU]
    assert_same(forms[UNFUSED](x), forms[DEPLOYED](x))
    assert_same(nn.functional.silu(forms[CONVOLUTION](x)), forms[DEPLOYED](x))


@pytest.mark.parametrize("yaml", ["yolov5n-rep.yaml", "yolov5s-rep-k33.yaml"])
def test_forms_of_a_model_are_what_they_are_called(yaml: str) -> None:
    subjects = of_name(yaml)
    forms, x = subjects.forms, torch.rand(1, 3, 64, 64)
    unfused, deployed, stock = (sum(1 for m in form.modules() if isinstance(m, nn.Conv2d)) for form in forms.values())
    assert subjects.stride == 32
    assert unfused > deployed == stock
    assert not any(isinstance(m, nn.BatchNorm2d) for name in (DEPLOYED, STOCK) for m in forms[name].modules())
    assert not any(isinstance(m, Conv_C3) for m in forms[STOCK].modules())
    outputs = {name: form(x)[0] for name, form in forms.items()}
    assert relative_error(outputs[UNFUSED], outputs[DEPLOYED]) < SIXTY_LAYERS
    if "k33" not in yaml:
        assert relative_error(outputs[DEPLOYED], outputs[STOCK]) < SIXTY_LAYERS


def test_forms_of_a_model_that_was_expanded_include_the_stock_one() -> None:
    from ultralytics import YOLO

    model = randomize_(expand(YOLO("yolov5n.yaml").model.eval()))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-3  # the host's, which its stock model has
    forms, x = of_model("expanded", model).forms, torch.rand(1, 3, 64, 64)
    assert relative_error(forms[UNFUSED](x)[0], forms[STOCK](x)[0]) < SIXTY_LAYERS
    assert list(of_model("stock", deploy(model)).forms) == [UNFUSED, DEPLOYED]


def test_forms_of_a_classifier_are_the_paper_s_network_with_and_without_branches() -> None:
    forms, x = of_name("repvgg-a0.yaml").forms, torch.rand(1, 3, 64, 64)
    assert list(forms) == [UNFUSED, DEPLOYED]
    assert [sum(isinstance(m, nn.Conv2d) for m in form.modules()) for form in forms.values()] == [44, 22]
    assert relative_error(forms[UNFUSED](x)[1], forms[DEPLOYED](x)[1]) < SIXTY_LAYERS


def test_activations_work_in_place_as_in_a_checkpoint_that_the_host_loads() -> None:
    """A model that the host builds from a YAML has others, so that it would be timed slower than `detect.py` is."""
    forms = of_name("yolov5n-rep.yaml").forms
    for name, form in forms.items():
        assert {act.inplace for act in form.modules() if isinstance(act, nn.SiLU)} == {True}, name
    assert not type(forms[DEPLOYED].model[0]).default_act.inplace  # type: ignore[index, union-attr]  # the host's own


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_forms_of_a_torchvision_classifier_are_what_they_are_called(name: str) -> None:
    forms, x = of_name(f"torchvision:{name}").forms, torch.rand(1, 3, 64, 64)
    assert list(forms) == [UNFUSED, DEPLOYED]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in forms[DEPLOYED].modules())
    assert relative_error(forms[UNFUSED](x), forms[DEPLOYED](x)) < SIXTY_LAYERS


@pytest.mark.parametrize("name", ["maxvit_t", "vit_b_32"])
def test_a_classifier_of_one_size_is_timed_at_it_by_default(name: str, tmp_path: Path) -> None:
    result = invoke(app, ["bench", f"torchvision:{name}", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (run,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert (run["what"], run["size"]) == (name, 224)


def test_a_classifier_that_cannot_be_folded_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module) -> None:
        raise torch.fx.proxy.TraceError("symbolically traced variables cannot be used\nas inputs")

    monkeypatch.setattr(optimization, "fuse", refuse)
    with pytest.raises(UsageError, match=r"squeezenet1_1 of torchvision cannot be .*: symbolically traced .* used$"):
        of_name("torchvision:squeezenet1_1")


def test_models_beside_take_no_name_that_is_taken() -> None:
    """`--beside deployed.pt` and two files best.pt: every form is timed, and the unit stays the subject's own."""
    one, other, third = (of_block("repvgg", 8) for _ in range(3))
    joined = beside(one, [replace(other, name=DEPLOYED), replace(other, name="best"), replace(third, name="best")])
    assert list(joined.forms) == [*one.forms, f"{DEPLOYED} (2)", "best", "best (2)"]
    assert joined.forms[DEPLOYED] is one.forms[DEPLOYED]
    assert joined.forms["best (2)"] is third.forms[DEPLOYED]


def test_models_beside_are_timed_in_the_same_rounds(tmp_path: Path) -> None:
    arguments = ["torchvision:squeezenet1_1", "--beside", "torchvision:resnet18", "--imgsz", "32", "--rounds", "2"]
    result = invoke(app, ["bench", *arguments, "--threads", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (run,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert list(run["forms"]) == [UNFUSED, DEPLOYED, "resnet18"]
    assert all(len(form["seconds"]) == 2 and form["fps"] > 0 for form in run["forms"].values())


def test_a_fresh_model_computes_with_numbers_of_ordinary_size() -> None:
    sizes = []
    model = of_name("yolov5n-rep.yaml").forms[UNFUSED]
    for module in model.modules():
        if isinstance(module, Conv_C3):
            module.register_forward_hook(lambda *hook: sizes.append(float(hook[-1].std())))
    with torch.no_grad():
        model(torch.rand(1, 3, 128, 128))
    assert 1e-3 < min(sizes) <= max(sizes) < 1e3


def test_bench_runs_every_combination_and_restores_the_process() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    formats = ("float32", "bfloat16"), ("contiguous", "channels_last")
    subjects, threads = of_block("repvgg", 8), set()
    subjects.forms[UNFUSED].register_forward_hook(lambda *hook: threads.add(torch.get_num_threads()))

    results = bench(subjects, Settings((1, 2), (16,), *formats, rounds=2, threads=before[0] + 1))

    runs = [(r.batch, r.size, r.precision, r.layout) for r in results]
    assert len(runs) == len(set(runs)) == 8
    assert threads == {before[0] + 1}
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == before
    assert not torch.is_inference_mode_enabled()


def test_forms_run_in_the_precision_and_layout_asked_for() -> None:
    subjects, seen = of_block("repvgg", 8), set()
    subjects.forms[UNFUSED].conv.register_forward_hook(
        lambda conv, inputs, output: seen.add(
            (inputs[0].dtype, conv.weight.dtype, output.is_contiguous(memory_format=torch.channels_last))
        )
    )
    bench(subjects, Settings(sizes=(16,), precisions=("bfloat16",), layouts=("channels_last",), rounds=2))
    assert seen == {(torch.bfloat16, torch.bfloat16, True)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonesuch"], "neither a block .*repvgg.* nor a model YAML nor a checkpoint"),
        (["nonesuch.yaml"], "nonesuch.yaml is neither a file nor a model YAML"),
        (["nonesuch.pt"], "nonesuch.pt does not exist"),
        (["repvgg", "nonesuch"], "'nonesuch' is neither"),
        (["nonesuch(branches=6)"], r"'nonesuch\(branches=6\)' is neither"),
        (
            ["mobileone(branch=6)"],
            r"block 'mobileone\(branch=6\)': branch=6 is not accepted; mobileone takes branches=4",
        ),
        (["torchvision:resnet19"], "torchvision has no classifier 'resnet19'; accepted: .*resnet18"),
        (["repvgg", "--beside", "torchvision:resnet18"], "resnet18 takes 3 channels and repvgg 64"),
        (["torchvision:vit_b_32", "--imgsz", "64"], "vit_b_32, batch 1, 64 px, .*cannot run it: Wrong image height"),
        (["yolov5n-rep.yaml", "--imgsz", "100"], "multiples of 32, not 100"),
        (["repvgg", "--device", "nonesuch"], "device 'nonesuch' is not here; accepted: cpu"),
        (["repvgg", "--device", "cuda:99"], "device 'cuda:99' is not here"),
        (["repvgg", "--device", "cpu", "--precision", "half"], "accepted on cpu: float32, bfloat16"),
    ],
)
def test_command_says_what_is_wrong_and_writes_nothing(arguments: list[str], told: str, tmp_path: Path) -> None:
    result = invoke(app, ["bench", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, YolorepError)
    with pytest.raises(YolorepError, match=told):
        raise result.exception
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        result = invoke(app, ["bench", "repvgg", "--rounds", "100000", "--out", str(out)])
        assert isinstance(result.exception, UsageError)
        assert "cannot be written" in str(result.exception)


def test_a_broken_yaml_is_told_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("nc: 3\nbackbone: [[-1, 1, Nonesuch, [64]]]\nhead: []\n")
    with pytest.raises(YolorepError, match=r"broken\.yaml: it has no list `head`"):
        of_name(str(broken))


def test_settings_from_a_script_are_checked() -> None:
    for wrong in ({"rounds": 1}, {"batches": (0,)}, {"precisions": ("float8",)}, {"layouts": ("striped",)}):
        with pytest.raises(UsageError, match="accepted"):
            bench(of_block("repvgg", 8), Settings(**{**vars(QUICK), **wrong}))


def test_command_writes_the_record_and_the_plot(tmp_path: Path) -> None:
    arguments = ["repvgg", "--batch", "1", "2", "--imgsz", "16", "--rounds", "3", "--threads", "1", "--out", tmp_path]
    result = invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert {"unfused", "deployed", "stock", "FPS"} <= set(result.output.split())
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["machine"]["threads"] == 1
    assert record["packages"]["torch"] == torch.__version__.split("+")[0] or record["packages"]["torch"]
    assert [(r["batch"], r["layout"]) for r in record["results"]] == [
        (1, "contiguous"),
        (2, "contiguous"),
        (1, "channels_last"),
        (2, "channels_last"),
    ]
    assert all(len(form["seconds"]) == 3 for r in record["results"] for form in r["forms"].values())
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_no_text_of_the_plot_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"gpu": None, "processor": "A Processor With a Very Long Name", "threads": 16, "cudnn_benchmark": False}
    monkeypatch.setattr("yolorep.bench.report.machine", lambda *given: machine)
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: drawn.append(figure))
    plot(bench(of_block("repvgg", 8), QUICK), QUICK, tmp_path / "bench.png")
    drawn[0].draw_without_rendering()
    for text in drawn[0].findobj(Text):
        box = text.get_window_extent()
        assert not text.get_text() or (box.x0 >= 0 and box.x1 <= drawn[0].bbox.x1), text.get_text()


def test_a_block_is_timed_with_its_options(tmp_path: Path) -> None:
    arguments = ["mobileone(branches=2)", "--channels", "8", "--rounds", "2", "--threads", "1", "--out", str(tmp_path)]
    result = invoke(app, ["bench", *arguments])
    assert result.exit_code == 0, result.output
    runs = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert [(run["what"], run["size"], run["layout"]) for run in runs] == [
        ("mobileone(branches=2)", 64, "contiguous"),
        ("mobileone(branches=2)", 64, "channels_last"),
    ]


def test_command_writes_to_a_folder_of_its_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second replaces the files of the first
        result = invoke(app, ["bench", "plain", "--imgsz", "16", "--rounds", "2", "--threads", "1"])
        assert result.exit_code == 0, result.output
        assert "wrote yolorep-bench/bench.json yolorep-bench/bench.png" in " ".join(result.output.split())
    assert sorted(p.name for p in (tmp_path / "yolorep-bench").iterdir()) == ["bench.json", "bench.png"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a --batch 1", "a --batch 1"),
        ("a --batch 1 8 b", "a --batch 1 --batch 8 b"),
        ("--imgsz 320 640 --batch 1 2 4", "--imgsz 320 --imgsz 640 --batch 1 --batch 2 --batch 4"),
        ("--precision float32 half x.pt", "--precision float32 --precision half x.pt"),
        ("--batch 1 --rounds 3 5", "--batch 1 --rounds 3 5"),
        ("--batch --rounds", "--batch --rounds"),
    ],
)
def test_spread_repeats_the_name_of_a_list_option(given: str, expected: str) -> None:
    assert spread(given.split()) == expected.split()
