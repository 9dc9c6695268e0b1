"""Constants of `repopt` and `csla` from a file: of a training with learned scales, or written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.hosts.yolov5_helpers import launch, needs_package
from tests.training.test_gradient_mask import (
    BOUND,
    build,
    difference,
    iterate_exactly,
    resumed,
    steps,
    trained,
    ultralytics,
)
from yolorep import BlockError, YolorepError, deploy, expand
from yolorep.blocks.csla import SMALL
from yolorep.errors import UsageError
from yolorep.given_scales import GivenScales
from yolorep.host import ULTRALYTICS, YOLOV5, Host
from yolorep.hosts.learned_scales import learned, read_scales
from yolorep.hosts.train_options import read, recorded_of
from yolorep.late_request import begun
from yolorep.model_yaml import plan, without_earlier
from yolorep.stock_layers import rep_blocks

LEARNED = "csla(scales=learned)"


def constants() -> dict[str, list[float]]:
    """Different ones for every channel of every layer of `build`'s model that has a 1x1 kernel."""
    model = build("csla")
    sizes = {name: model.get_submodule(name).conv.out_channels for name in rep_blocks(model)}
    named = {name: size for name, size in sizes.items() if hasattr(model.get_submodule(name), SMALL)}
    assert len(named) > 3
    return {name: (0.3 + torch.arange(size) / size).tolist() for name, size in named.items()}


def of_file(layers: dict[str, list[float]]) -> dict[str, Any]:
    return {"rep_scales": {"file": "csla.pt", "layers": layers}}


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {}), ("AdamW", {}), ("Adam", {"decay": 0.0}), ("MuSGD", {})], ids=str
)
def test_fifty_steps_give_the_kernels_of_csla_with_the_same_constants(
    name: str, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "MuSGD":
        iterate_exactly(monkeypatch)
    top = of_file(constants())
    csla, repopt = (trained(block, ultralytics(name, **options), **top) for block in ("csla", "repopt"))
    assert rep_blocks(repopt) == []
    assert difference(csla, repopt) < BOUND
    without = trained("repopt", ultralytics(name, **options))
    assert difference(csla, without) > 1e-3, "the constants count"


def test_constants_are_those_that_a_training_has_learned(tmp_path: Path) -> None:
    model = build(LEARNED)
    steps(model, ultralytics("SGD")(model), 0, 5)
    block = model.get_submodule(next(iter(constants())))
    with torch.no_grad():
        block.branch_1x1.scale.weight[0] = -0.25  # type: ignore[union-attr, index, operator]
    torch.save({"model": model}, tmp_path / "csla.pt")
    given = read_scales(tmp_path / "csla.pt")
    assert given.layers.keys() == constants().keys()
    assert next(iter(given.layers.values()))[0] == pytest.approx(0.25)
    assert given.layers == learned(model)
    moved = max(abs(value - 1) for values in given.layers.values() for value in values)
    assert moved > 1e-3
    (tmp_path / "csla.json").write_text(json.dumps(dict(given.layers)))
    assert read_scales(tmp_path / "csla.json").layers == given.layers


def test_a_model_goes_on_with_them_where_the_file_is_gone(tmp_path: Path) -> None:
    model = build(LEARNED)
    torch.save({"model": model}, tmp_path / "csla.pt")
    written = read({"rep": "repopt", "scales": str(tmp_path / "csla.pt")}).constants()
    (tmp_path / "csla.pt").unlink()
    repopt, make = build("repopt", **written), ultralytics("SGD")
    optimizer = make(repopt)
    steps(repopt, optimizer, 0, 5)
    again, other = resumed(repopt, optimizer, "repopt", make, **written)
    for both in ((repopt, optimizer), (again, other)):
        steps(*both, 5, 10)
    assert all(torch.equal(a, b) for a, b in zip(repopt.parameters(), again.parameters(), strict=True))


def test_a_trained_model_keeps_its_kernels_and_gets_the_constants() -> None:
    stock = deploy(build("csla").eval())
    stock.yaml = {**{key: value for key, value in stock.yaml.items() if key != "rep"}, **of_file(constants())}  # type: ignore[union-attr, operator, assignment]
    csla = expand(stock, "csla")
    for name, values in constants().items():
        assert csla.get_submodule(name).branch_1x1.scale.weight.tolist() == pytest.approx(values)  # type: ignore[union-attr, operator]
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(stock(x)[0], csla(x)[0])


def test_options_write_the_constants_and_record_the_file(tmp_path: Path) -> None:
    file = tmp_path / "scales.yaml"
    file.write_text("model.1: [0.5, 0.25]\n")
    options = read({"rep": "repopt", "scales": str(file)})
    written = options.written({"backbone": [], "head": []}, ULTRALYTICS)
    assert written["rep_scales"] == {"file": str(file), "layers": {"model.1": [0.5, 0.25]}}
    assert recorded_of(written) == options.recorded()
    assert options.recorded()["scales"] == str(file)


@pytest.mark.parametrize("block", ["csla", "repopt"])
@pytest.mark.parametrize("host", [ULTRALYTICS, YOLOV5], ids=lambda host: host.name)
def test_a_model_with_the_block_takes_no_other_constants(block: str, host: Host, tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.25)):
        (tmp_path / f"{name}.yaml").write_text(f"model.1: [{value}]\n")
    a, b = (read({"rep": block, "scales": str(tmp_path / f"{name}.yaml")}) for name in "ab")
    given = a.written({"backbone": [], "head": []}, host)
    assert a.written(given, host) == given
    with pytest.raises(UsageError, match=rf"^the model has rep={block} with those of \S+a\.yaml already, so scales="):
        b.written(given, host)
    with pytest.raises(UsageError, match=rf"^the model has rep={block} with its block's constants already"):
        a.written(read({"rep": block}).written({"backbone": [], "head": []}, host), host)


def test_constants_of_an_earlier_request_go_with_it(tmp_path: Path) -> None:
    late = {"rep_late": {"block": "csla", "from": 0.5}}
    stale = begun({"backbone": [], "head": [], **of_file({"model.1": [0.5]}), **late})
    assert read({"rep": "repvgg"}).written(stale, ULTRALYTICS).keys() == {"backbone", "head", "rep"}
    assert without_earlier(stale).keys() == {"backbone", "head"}


def test_constants_without_blocks_are_refused() -> None:
    with pytest.raises(BlockError, match=r"^rep_scales is for the blocks of rep or rep_late, and neither is given; "):
        plan({"backbone": [], "head": [], **of_file({"model.1": [0.5]})}, ULTRALYTICS)


def changed(change: Any) -> dict[str, list[float]]:
    layers = constants()
    change(layers, next(iter(layers)))
    return layers


MISMATCHES = {
    "missing": (lambda layers, name: layers.pop(name), r"^model\.\S+: scales: csla\.pt has no scales for its \d+ chan"),
    "more": (lambda layers, _: layers.update({"model.9": [1.0]}), r"^scales: csla\.pt has scales of model\.9, which"),
    "channels": (lambda layers, name: layers[name].pop(), r"^model\.\S+: scales: csla\.pt has scales of \d+ channels"),
    "zero": (
        lambda layers, name: layers.update({name: [0.0]}),
        r"^scales: csla\.pt: model\.\S+: accepted is a list",
    ),
    "text": (lambda layers, name: layers.update({name: "1"}), r"^scales: csla\.pt: model\.\S+: accepted is a list"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_file_of_other_layers_is_one_sentence(case: str) -> None:
    change, message = MISMATCHES[case]
    with pytest.raises(BlockError, match=message) as raised:
        build("repopt", **of_file(changed(change)))
    assert "accepted" in str(raised.value)


@pytest.mark.parametrize("block", ["repvgg", LEARNED])
def test_a_block_without_constants_takes_none(block: str) -> None:
    with pytest.raises(BlockError, match=r"scales is for blocks with constants; accepted: repopt, csla$"):
        build(block, **of_file(constants()))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "alone": ({"scales": "csla.pt"}, "^scales says more about rep, which is not given"),
    "block": ({"rep": "repvgg", "scales": "csla.pt"}, "^scales is for constants; accepted beside it: rep=repopt and"),
    "learned": ({"rep": LEARNED, "scales": "csla.pt"}, "^scales is for constants"),
    "number": ({"rep": "repopt", "scales": 3}, "^scales=3 is not accepted; accepted: a checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_one_sentence(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(YolorepError, match=message):
        read(given)


def test_files_without_constants_are_refused(tmp_path: Path) -> None:
    torch.save({"model": build("csla")}, tmp_path / "constant.pt")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "empty.yaml").write_text("{}")
    (tmp_path / "text.txt").write_text("x")
    for name, message in {
        "none.pt": "no such file",
        "constant.pt": "has no learned scales; accepted: a checkpoint of",
        "list.yaml": "is not a mapping from layers to lists of numbers",
        "empty.yaml": "holds no layers",
        "text.txt": "is not accepted; accepted: a checkpoint",
    }.items():
        with pytest.raises(YolorepError, match=message):
            read_scales(tmp_path / name)
    with pytest.raises(BlockError, match=r"^rep_scales is not accepted"):
        GivenScales.of({"rep_scales": [1]})


def test_training_takes_the_scales_of_another_run(tiny_dataset: Path, tmp_path: Path) -> None:
    host = pytest.importorskip("ultralytics")
    quiet = {"workers": 0, "device": "cpu", "plots": False, "amp": False, "verbose": False, "project": str(tmp_path)}
    short = {"imgsz": 32, "batch": 4, "nbs": 4, "epochs": 1, "optimizer": "SGD", "data": str(tiny_dataset)}
    select = [1, "model.2.*"]
    first = host.YOLO("yolov8n.yaml")
    first.train(rep=LEARNED, select=select, **quiet, **short)
    file = first.trainer.last
    second = host.YOLO("yolov8n.yaml")
    second.train(rep="repopt", select=select, scales=str(file), **quiet, **short)
    saved = host.YOLO(second.trainer.last).model
    assert saved.yaml["rep_scales"]["layers"].keys() == read_scales(file).layers.keys()
    assert not [m for m in saved.modules() if type(m).__module__.startswith("yolorep")]
    with pytest.raises(BlockError, match=r"has no scales for its \d+ channels; accepted: a file of the same layers"):
        host.YOLO("yolov8n.yaml").train(rep="repopt", scales=str(file), **quiet, **short)
    assert isinstance(saved, nn.Module)


@needs_package
def test_yolov5_takes_constants_from_a_file(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "scales.yaml").write_text(json.dumps({"model.1": [0.5] * 32}))
    options = ["--img", "64", "--batch", "4", "--workers", "0", "--device", "cpu", "--noplots", "--noautoanchor"]
    asked = ["--rep", "repopt", "--select", "1", "--scales", "scales.yaml", "--project", "runs", "--name", "one"]
    common = ["--cfg", "yolov5n.yaml", "--weights", "", "--data", tiny_dataset, "--epochs", "1"]
    printed = launch("train.py", *common, *options, *asked, cwd=tmp_path)
    assert "steps the kernels of 1 convolutions by masks" in printed
