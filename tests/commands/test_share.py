"""`yolorep deploy --share`: the frozen paths of twins are given another share, or the best of several."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.helpers import randomize_, relative_error
from tests.processes import yolorep
from yolorep import BlockError, Conv_C3, expand
from yolorep.commands.share import _told, chosen_share
from yolorep.errors import UsageError
from yolorep.sharing import weigh_twins_


def twin(**options: int) -> Conv_C3:
    block = randomize_(Conv_C3(8, 8, block="twin", act=False, **options)).double().eval()
    nn.init.normal_(block.branch_frozen.conv.weight)  # type: ignore[union-attr, arg-type]
    return block


def weighed(block: Conv_C3, share: float) -> Conv_C3:
    copied = deepcopy(block)
    assert weigh_twins_(copied, share) == 1
    return copied


@pytest.mark.parametrize("options", [{}, {"s": 2}, {"g": 4, "d": 2}], ids=str)
def test_kernel_and_bias_are_linear_in_the_share(options: dict[str, int]) -> None:
    block = twin(**options)
    whole, ends = block.linear_kernel(), [weighed(block, share).linear_kernel() for share in (0, 1)]
    for share in (0.25, 0.5, 0.8):
        got = weighed(block, share).linear_kernel()
        for name in ("weight", "bias"):
            expected = (1 - share) * getattr(ends[0], name) + share * getattr(ends[1], name)
            assert relative_error(expected, getattr(got, name)) < 1e-12
    assert relative_error(whole.weight, weighed(block, 0.5).linear_kernel().weight) < 1e-12
    assert relative_error(whole.bias, weighed(block, 0.5).linear_kernel().bias) < 1e-12
    trained, frozen = (relative_error(whole.weight, end.weight) for end in ends)
    assert min(trained, frozen) > 1e-2


def test_each_end_is_one_path_alone() -> None:
    block = twin()
    kernels = dict(block.terms())
    for share, name in ((0, "dense"), (1, "branch_frozen")):
        assert relative_error(2 * kernels[name].weight, weighed(block, share).linear_kernel().weight) < 1e-12


def test_what_cannot_be_weighed_is_refused() -> None:
    with pytest.raises(BlockError, match=r"^share 1\.5 is not accepted; accepted: from 0, the trained path, to 1"):
        weigh_twins_(twin(), 1.5)
    with pytest.raises(BlockError, match=r"^share is of the frozen paths of block twin, of which the model has none"):
        weigh_twins_(Conv_C3(4, 4), 0.5)
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    fresh = expand(randomize_(nn.Sequential(conv.Conv(4, 8, 3))).eval(), "twin")
    with pytest.raises(BlockError, match=r"^share: the blocks twin have not been trained since they were made"):
        weigh_twins_(fresh, 0.25)


def test_the_best_share_is_chosen_and_its_optimism_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        0.0: {"mAP50": 0.6, "mAP50-95": 0.3},
        0.5: {"mAP50": 0.5, "mAP50-95": 0.35},
        1.0: {"mAP50": 0.7, "mAP50-95": 0.4},
    }
    assert _told(found, Path("data.yaml"), Console()) == 1.0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.5 (as trained)" in printed
    assert "1 has the best mAP50-95 of 3 shares" in printed
    assert "so that the figure is optimistic" in printed
    equal = {share: {"top-1": 0.5} for share in (0.0, 0.4, 1.0)}
    assert _told(equal, Path("data"), Console()) == 0.4


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    with pytest.raises(UsageError, match=r"^several shares are compared on a data set; accepted: --data"):
        chosen_share(source, out, [0, 1], None, console=Console())
    for options in ({"data": Path("data.yaml")}, {"data": None, "imgsz": 64}):
        with pytest.raises(UsageError, match=r"^--(data|imgsz) is for choosing among several shares"):
            chosen_share(source, out, [0.5], console=Console(), **options)  # type: ignore[arg-type]
    assert chosen_share(source, out, [], None, console=Console()) is None


def test_the_command_validates_every_share_and_deploys_the_best(tiny_dataset: Path, tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    yolo = ultralytics.YOLO("yolov8n.yaml")
    yolo.model = randomize_(expand(randomize_(yolo.model).eval(), "twin", select=[1, "model.2.*"]))
    yolo.save(tmp_path / "twin.pt")
    printed = yolorep(
        "deploy", "twin.pt", "out.pt", "--share", "0", "0.5", "1", "--data", tiny_dataset, "--imgsz", "64", cwd=tmp_path
    )
    assert "chosen on the images of" in " ".join(printed.split())
    yolorep("deploy", "twin.pt", "one.pt", "--share", "0.25", "--float32", cwd=tmp_path)
    model = ultralytics.YOLO(tmp_path / "twin.pt").model.float().eval()
    weigh_twins_(model, 0.25)
    x = torch.rand(1, 3, 64, 64)
    got = ultralytics.YOLO(tmp_path / "one.pt").model.float().eval()(x)[0]
    assert relative_error(model(x)[0], got) < 1e-4
