"""From a checkpoint file to another: what is written is plain, complete, proven, or not there at all."""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from rich.console import Console

from tests.helpers import assert_untouched, randomize_, run_python, snapshot, sure_
from tests.processes import yolorep as command
from yolorep import CheckpointError, VerifyError, deployment
from yolorep.cli import main
from yolorep.commands import deploy as deploy_command
from yolorep.hosts import checkpoints, evaluate
from yolorep.stock_layers import rep_blocks
from yolorep.verification import verify

Command = Callable[..., int]

NAMES = {0: "red", 1: "green", 2: "blue"}
DESCRIBE = """
import sys
sys.modules["yolorep"] = None  # as where it is not installed
import collections, json, os, onnx, torch
from ultralytics import YOLO
from ultralytics.utils.torch_utils import get_flops
result = []
for file in sys.argv[1:]:
    yolo = YOLO(file)
    model = yolo.model.float()
    kinds = collections.Counter(f"{type(m).__module__}.{type(m).__name__}" for m in model.modules())
    described = {
        "state": [[k, list(v.shape)] for k, v in model.state_dict().items()],
        "kinds": kinds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": get_flops(model, 64),
        "names": model.names,
        "stride": model.stride.tolist(),
        "rows": [[row[0], row[1], row[2], row[3]] for row in model.yaml["backbone"] + model.yaml["head"][:-1]],
    }
    graph = onnx.load(yolo.export(format="onnx", imgsz=64, simplify=False)).graph
    described["operators"] = collections.Counter(node.op_type for node in graph.node)
    yolo.train(data=os.environ["DATA"], imgsz=64, epochs=1, batch=4, workers=0, device="cpu", plots=False)
    result.append(described)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rep.pt` and `stock.pt`, checkpoints of ultralytics with random batch norms and three classes."""
    from ultralytics import YOLO

    folder = tmp_path_factory.mktemp("checkpoints")
    for name, yaml in (("rep", "yolov5n-rep.yaml"), ("stock", "yolov5n.yaml")):
        yolo = YOLO(yaml)
        yolo.model = type(yolo.model)(yaml, nc=3, verbose=False)
        randomize_(yolo.model)
        yolo.model.names = NAMES
        yolo.ckpt = {"epoch": 7, "optimizer": {"state": 1}, "updates": 5}
        yolo.save(folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The exit code of the `yolorep` command, run in this process and in the folder of the checkpoints."""
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["yolorep", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return int(exit.value.code or 0)

    return run


@pytest.fixture(scope="module")
def deployed(folder: Path) -> Path:
    printed = command("deploy", "rep.pt", "deployed.pt", cwd=folder)
    assert "28 blocks folded" in printed
    return folder / "deployed.pt"


def test_deployed_checkpoint_is_stock_where_yolorep_is_not_installed(
    folder: Path, deployed: Path, tiny_dataset: Path
) -> None:
    printed = run_python(DESCRIBE, deployed, folder / "stock.pt", cwd=folder, DATA=str(tiny_dataset))
    ours, stock = json.loads(printed.splitlines()[-1])
    assert len(stock["state"]) == 427
    assert stock["operators"]["Conv"] > 60
    for what in stock:
        assert ours[what] == stock[what], what


def test_deployed_checkpoint_keeps_its_contents(folder: Path, deployed: Path) -> None:
    before, after = (torch.load(path, weights_only=False) for path in (folder / "rep.pt", deployed))
    assert before.keys() == after.keys()
    for key in before.keys() - {"model", *checkpoints.OF_THE_RUN}:
        assert before[key] == after[key], key
    assert all(after.get(key, value) == value for key, value in checkpoints.OF_THE_RUN.items())
    assert after["epoch"] == -1  # which both hosts refuse to resume
    assert dtypes(before["model"]) == dtypes(after["model"]) == {torch.float16}


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {v.dtype for v in model.state_dict().values() if v.is_floating_point()}


@pytest.mark.parametrize("command", [["deploy", "rep.pt"], ["expand", "stock.pt"]])
@pytest.mark.parametrize(
    ("options", "dtype", "says"),
    [
        ([], torch.float16, "stored as float16, as the source is: largest relative error"),
        (["--half"], torch.float16, "(float64 arithmetic; reported, not judged)"),
        (["--float32"], torch.float32, "from rounding to float32 (tolerance 1e-05)"),
    ],
)
def test_a_checkpoint_is_stored_in_the_precision_of_its_source_unless_asked_otherwise(
    folder: Path,
    command: list[str],
    options: list[str],
    dtype: torch.dtype,
    says: str,
    here: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert here(*command, "stored.pt", "--overwrite", *options) == 0
    assert says in " ".join(capsys.readouterr().out.split())
    assert dtypes(torch.load(folder / "stored.pt", weights_only=False)["model"]) == {dtype}
    assert here("verify", command[1], "stored.pt") == 0
    if command[0] == "deploy":
        size = (folder / "stored.pt").stat().st_size / (folder / "rep.pt").stat().st_size
        assert size < 1 if dtype is torch.float16 else size > 1.5


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--float32", "FAILS: beyond the tolerance: mAP50"),
        ("--half", "FAILS: beyond the tolerance: mAP50 (it stores float16; `yolorep deploy --float32` rounds less)"),
    ],
)
def test_verify_names_the_figures_that_differ(
    folder: Path,
    option: str,
    says: str,
    here: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert here("deploy", "rep.pt", "figures.pt", "--overwrite", option) == 0
    (folder / "data.yaml").write_text("")
    values = {"rep.pt": 0.3, "figures.pt": 0.3004}
    figures = {name: {"mAP50": value, "mAP50-95": 0.2} for name, value in values.items()}
    monkeypatch.setattr(evaluate, "figures", lambda model, data: figures[model.path.name])
    assert here("verify", "rep.pt", "figures.pt", "--data", "data.yaml") == 1
    told = " ".join(capsys.readouterr().out.split())
    assert told.endswith(says)


def test_a_source_of_float32_is_stored_as_such(folder: Path, here: Command) -> None:
    checkpoint = checkpoints.load(folder / "rep.pt")
    assert checkpoint.dtype == torch.float16
    checkpoints.save(checkpoint, checkpoint.model, folder / "single.pt", overwrite=True)
    assert checkpoints.load(folder / "single.pt").dtype == torch.float32
    assert here("deploy", "single.pt", "stored.pt", "--overwrite") == 0
    assert dtypes(torch.load(folder / "stored.pt", weights_only=False)["model"]) == {torch.float32}


@pytest.mark.parametrize("fault", ["a value that does not fit", "a value that loses its digits"])
def test_what_half_does_not_hold_is_stored_as_float32_and_said(
    fault: str, folder: Path, here: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.load(folder / "rep.pt")
    block = checkpoint.model.model[1]
    with torch.no_grad():
        if fault == "a value that does not fit":
            block.bn.running_mean += 6e4
            block.branch_1x1.bn.running_mean -= 6e4
        else:
            halved = checkpoints.halved

            def coarse(model: torch.nn.Module) -> torch.nn.Module:
                result = halved(model)
                result.model[1].bn.bias.data += 0.5
                return result

            monkeypatch.setattr(checkpoints, "halved", coarse)
    save = torch.save
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", lambda content, file: save({**content, "model": content["model"].half()}, file))
        checkpoints.save(checkpoint, checkpoint.model, folder / "wide.pt", overwrite=True)
    assert here("deploy", "wide.pt", "stored.pt", "--overwrite") == 0
    told = " ".join(capsys.readouterr().out.split())
    says = (
        "does not fit float16" if "fit" in fault else "in float16, as the source is, the largest relative error would"
    )
    assert f"stored as float32: {'model.' if 'fit' in fault else ''}" in told
    assert says in told
    assert dtypes(torch.load(folder / "stored.pt", weights_only=False)["model"]) == {torch.float32}


def test_deploy_says_what_it_left_and_why(
    folder: Path, here: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fold = deployment.deployed

    def leaves(model: torch.nn.Module) -> deployment.Deployment:
        calls.append(model)
        done, left = fold(model), ("model.3: RepBlock is left as it is: it cannot be run",)
        return replace(done, folding=replace(done.folding, left=left))

    monkeypatch.setattr(deploy_command, "deployed", leaves)
    assert here("deploy", "rep.pt", "stored.pt", "--overwrite") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not folded: model.3: RepBlock is left as it is: it cannot be run" in printed
    assert "28 blocks folded" in printed
    assert len(calls) == 1
    assert here("deploy", "stock.pt", "none.pt") == 2
    told = capsys.readouterr().err
    assert "none of the rep blocks in stock.pt folds (model.3: RepBlock is left as it is" in " ".join(told.split())


@pytest.mark.parametrize(("yaml", "row"), [("yolov5s-rep-k33.yaml", "C3Rep"), ("repvgg-a0.yaml", "FC"), ("rep.pt", "")])
def test_deploy_says_which_rows_a_host_cannot_build_alone(
    yaml: str, row: str, folder: Path, here: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultralytics import YOLO

    YOLO(folder / yaml if yaml.endswith(".pt") else yaml).save(folder / "rows.pt")
    assert here("deploy", "rows.pt", "stored.pt", "--overwrite") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (f"note: no stock row describes the layers of {row} in its YAML" in printed) == bool(row)


def test_blocks_of_others_are_searched_and_folded_once(
    folder: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(Odd, "switch_to_deploy", lambda self: calls.append(self) or Odd.fold_(self), raising=False)
    checkpoint = checkpoints.load(folder / "rep.pt")
    checkpoint.model.model[0].act = Odd()
    assert "model.0.act" in deployment.deployed(checkpoint.model).folding.folded
    assert len(calls) == 2  # on a copy, to be judged, and in earnest


class Odd(torch.nn.Module):
    """A block of somebody's own that folds itself: two 1x1 convolutions become one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(16, 16, 1), torch.nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x) if hasattr(self, "b") else self.a(x)

    def fold_(self) -> None:
        self.a.weight.data += self.b.weight.data
        self.a.bias.data += self.b.bias.data
        del self.b


def test_deploy_stores_half_when_asked(folder: Path, here: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("deploy", "rep.pt", "half.pt", "--half") == 0
    printed = " ".join(capsys.readouterr().out.split())
    told = float(printed.split("stored as float16: largest relative error ")[1].split()[0])
    assert "(float64 arithmetic; reported, not judged)" in printed
    rep, half = (checkpoints.load(folder / name).model for name in ("rep.pt", "half.pt"))
    assert told == pytest.approx(verify(rep, half).max_rel, rel=0.1)
    state = torch.load(folder / "half.pt", weights_only=False)["model"].state_dict()
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize("arguments", [["deploy", "rep.pt"], ["expand", "stock.pt"]])
def test_the_proof_is_in_float64_arithmetic(
    folder: Path, arguments: list[str], here: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*arguments, "proven.pt", "--overwrite", "--float32") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "in float64 arithmetic" in printed
    assert float(printed.split("largest relative error ")[1].split()[0]) < 5e-6
    assert here("verify", arguments[1], "proven.pt") == 0
    assert "float64 arithmetic, tolerance 1e-05" in capsys.readouterr().out


def test_verify_command_tells_models_of_other_widths(
    folder: Path, here: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultralytics import YOLO

    YOLO("yolov5s-rep.yaml").save(folder / "wide.pt")
    assert here("verify", "rep.pt", "wide.pt") == 2
    assert capsys.readouterr().err.startswith("yolorep: model.")


def test_expand_and_deploy_give_the_stock_weights_back(folder: Path, here: Command) -> None:
    assert here("expand", "stock.pt", "expanded.pt", "--overwrite") == 0
    assert here("deploy", "expanded.pt", "back.pt") == 0
    expanded, stock, back = (checkpoints.load(folder / f"{n}.pt").model for n in ("expanded", "stock", "back"))
    assert len(rep_blocks(expanded)) > 28
    assert "rep" not in back.yaml
    for (name, value), (other, restored) in zip(stock.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == other
        assert torch.allclose(value, restored, rtol=1e-4, atol=1e-6), name


def test_expand_takes_a_selection(folder: Path, here: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("expand", "stock.pt", "some.pt", "--select", "1", "--select", "model.2.m.*") == 0
    assert "3 layers expanded" in capsys.readouterr().out
    assert checkpoints.load(folder / "some.pt").model.yaml["rep"]["select"] == [1, "model.2.m.*"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deploy", "none.pt", "out.pt"], "none.pt does not exist"),
        (["deploy", "folder.pt", "out.pt"], "folder.pt is a folder"),
        (["deploy", "text.pt", "out.pt"], "text.pt is not a PyTorch checkpoint"),
        (["deploy", "empty.pt", "out.pt"], "empty.pt is not a PyTorch checkpoint"),
        (["deploy", "legacy.pt", "out.pt"], "legacy.pt is not a PyTorch checkpoint"),
        (["deploy", "half-copied.pt", "out.pt"], "half-copied.pt is not a PyTorch checkpoint"),
        (["deploy", "no-end.pt", "out.pt"], "no-end.pt is not a PyTorch checkpoint"),
        (["deploy", "pickle.pt", "out.pt"], "pickle.pt is not a PyTorch checkpoint"),
        (["deploy", "rep.pt", "folder.pt", "--overwrite"], "folder.pt is a folder"),
        (["deploy", "tensor.pt", "out.pt"], "tensor.pt holds no model of ultralytics or YOLOv5"),
        (["deploy", "stock.pt", "out.pt"], "stock.pt has no rep blocks"),
        (["deploy", "rep.pt", "stock.pt"], "stock.pt exists"),
        (["deploy", "rep.pt", "rep.pt", "--overwrite"], "rep.pt exists"),
        (["deploy", "rep.pt", "out.onnx"], "must end in .pt"),
        (["deploy", "rep.pt", "yolov5n.pt"], "yolov5n.pt is a name that ultralytics replaces by a download"),
        (["deploy", "rep.pt", "nowhere/out.pt"], "nowhere is not a folder"),
        (["expand", "expanded.pt", "out.pt"], "already expanded"),
        (
            ["expand", "stock.pt", "out.pt", "--block", "vgg"],
            "block 'vgg' is unknown; accepted: acb, csla, dbb, mobileone",
        ),
        (["expand", "stock.pt", "out.pt", "--identity", "x"], "identity 'x' is unknown; accepted: auto"),
        (["expand", "stock.pt", "out.pt", "--select", "99"], "matches none of the"),
        (["verify", "rep.pt", "none.pt"], "none.pt does not exist"),
        (["verify", "rep.pt", "rep.pt", "--images", "none"], "none is neither an image nor a folder"),
        (["verify", "rep.pt", "rep.pt", "--data", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_wrong_input_is_one_sentence_and_no_file(
    folder: Path, arguments: list[str], says: str, here: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_unreadable(folder)
    (folder / "expanded.pt").exists() or here("expand", "stock.pt", "expanded.pt")
    capsys.readouterr()
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert here(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("yolorep: ")
    assert says in told
    assert len(told.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files


def write_unreadable(folder: Path) -> None:
    (folder / "folder.pt").mkdir(exist_ok=True)
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "empty.pt").write_bytes(b"")
    tensor = {"weight": torch.zeros(10000)}
    torch.save(tensor, folder / "tensor.pt")
    torch.save(tensor, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    whole = (folder / "tensor.pt").read_bytes()
    (folder / "half-copied.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "no-end.pt").write_bytes(whole[:-30])
    with ZipFile(folder / "tensor.pt") as good, ZipFile(folder / "pickle.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"no pickle" if name.endswith("data.pkl") else good.read(name))


def test_deploy_writes_nothing_when_the_proof_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: torch.nn.Module) -> deployment.Deployment:
        result = deployment.deployed(model)
        with torch.no_grad():
            result.model.model[1].bn.bias += 1e-2
        return result

    monkeypatch.setattr(deploy_command, "deployed", wrong)
    with pytest.raises(VerifyError, match="out of tolerance"):
        deploy_command.deploy_file(folder / "rep.pt", tmp_path / "out.pt", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.pt"
    out.write_bytes(b"old")
    save = torch.save

    def interrupted(content: object, file: object) -> None:
        save({}, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy_command.deploy_file(folder / "rep.pt", out, overwrite=True, console=Console(quiet=True))
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("before", "after"), [(None, 0o640), (0o604, 0o604)])
def test_a_written_file_has_the_mode_of_any_other_and_a_replaced_one_its_own(
    before: int | None, after: int, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.pt"
    if before is not None:
        out.touch()
        out.chmod(before)
    mask = os.umask(0o027)
    try:
        deploy_command.deploy_file(folder / "rep.pt", out, overwrite=True, console=Console(quiet=True))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == after
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_is_full_is_one_sentence_and_leaves_the_old_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    out.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"out\.pt cannot be written: .*File too large"):
            deploy_command.deploy_file(folder / "rep.pt", out, overwrite=True, console=Console(quiet=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_halved_is_a_copy(folder: Path) -> None:
    model = checkpoints.load(folder / "stock.pt").model
    before = snapshot(model)
    dtypes = {v.dtype for v in checkpoints.halved(model).state_dict().values() if v.is_floating_point()}
    assert dtypes == {torch.float16}
    assert {v.dtype for v in model.parameters()} == {torch.float32}
    assert_untouched(before, model)


def test_half_refuses_what_does_not_fit(folder: Path) -> None:
    model = checkpoints.load(folder / "stock.pt").model
    model.model[0].bn.running_var[0] = 1e6
    with pytest.raises(CheckpointError, match=r"model\.0\.bn.running_var does not fit float16"):
        checkpoints.halved(model)


def test_verify_command_compares_boxes_and_map(
    folder: Path, tiny_dataset: Path, here: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoints.load(folder / "rep.pt")
    checkpoints.save(checkpoint, sure_(checkpoint.model), folder / "sure.pt")
    images = tiny_dataset.parent / "images" / "val"
    assert here("deploy", "sure.pt", "plain.pt") == 0
    assert here("verify", "sure.pt", "plain.pt", "--imgsz", "64", "--images", images, "--data", tiny_dataset) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found = re.search(r"(\d+) boxes on 4 images: 0 differ; largest difference of a pair: position", printed)
    assert found, printed
    assert int(found[1]) > 10
    assert "are 0 for both models" in printed  # its mAP: what it finds is right nowhere


def test_verify_command_exits_with_1_when_the_models_differ(
    folder: Path, deployed: Path, here: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoints.load(deployed)
    with torch.no_grad():
        checkpoint.model.model[1].bn.bias += 1e-2
    checkpoints.save(checkpoint, checkpoint.model, folder / "wrong.pt")
    assert here("verify", "rep.pt", "wrong.pt") == 1
    assert "FAILS" in capsys.readouterr().out
