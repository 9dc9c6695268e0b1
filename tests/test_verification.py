"""`verify` tells models that compute the same from those that do not, and leaves both as they were."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import randomize_
from yolorep import C3, Conv_C3, VerifyError, deploy, verify
from yolorep.verification import END_TO_END, Report, Row, verify_stored


def model() -> nn.Module:
    return randomize_(nn.Sequential(Conv_C3(3, 8, s=2), C3(8, 8, 2))).eval()


def test_verify_reports_each_block_and_the_whole() -> None:
    before = model()
    report = verify(before, deploy(before))
    expected = ["0", *(f"1.m.{i}.cv{j}" for i in (0, 1) for j in (1, 2)), "1.cv1", "1.cv2", "1.cv3"]
    assert sorted(row.name for row in report.rows[:-1]) == sorted(expected)
    assert report.rows[-1].name == END_TO_END
    assert report.ok
    assert 0 < report.max_rel <= 1e-5
    assert report.max_abs == max(row.max_abs for row in report.rows)


@pytest.mark.parametrize("layer", ["0", "1.m.1.cv2"])
def test_verify_names_the_layer_that_differs(layer: str) -> None:
    before = model()
    after = deploy(before)
    with torch.no_grad():
        after.get_submodule(layer).conv.bias[0] += 1e-2
    report = verify(before, after)
    assert not report.ok
    wrong = [row.name for row in report.rows if not report.passes(row)]
    assert wrong == [layer, END_TO_END]  # a block is given its own input, so that those after it are not blamed
    assert "FAILS" in str(report)


def test_verify_reports_nan_as_a_failure() -> None:
    before = model()
    after = deploy(before)
    with torch.no_grad():
        after[0].conv.bias[0] = math.nan
    assert not verify(before, after).ok


@pytest.mark.parametrize(
    ("dtype", "relative", "ok"),
    [
        (torch.float64, 1e-9, False),
        (torch.float64, 1e-11, True),
        (torch.float32, 1e-4, False),
        (torch.float32, 1e-6, True),
        (torch.bfloat16, 1e-1, True),  # reported only
        (torch.bfloat16, math.nan, False),
    ],
)
def test_report_judges_by_dtype(dtype: torch.dtype, relative: float, ok: bool) -> None:
    from yolorep.verification import TOLERANCE

    assert Report((Row(END_TO_END, relative, relative),), dtype, TOLERANCE.get(dtype)).ok is ok


def test_verify_leaves_both_models_as_they_were() -> None:
    before = model()
    after = deploy(before).train()
    before.train()
    states = [copy.deepcopy(m.state_dict()) for m in (before, after)]
    verify(before, after)
    for m, state in zip((before, after), states, strict=True):
        assert all(module.training for module in m.modules())
        assert not any(module._forward_hooks for module in m.modules())
        assert all(torch.equal(value, state[name]) for name, value in m.state_dict().items())


def test_verify_compares_on_the_given_input() -> None:
    before = model().double()
    report = verify(before, deploy(before), torch.rand(1, 3, 17, 23).double())
    assert report.dtype == torch.float64
    assert report.ok


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "no layer"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ModuleDict({})), "no layer"),
    ],
)
def test_verify_refuses_models_of_another_structure(other: nn.Module, reason: str) -> None:
    with pytest.raises(VerifyError, match=reason):
        verify(model(), other)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3), r"^end to end: .*\(2, 8, 62, 62\).*\(2, 4, 62, 62\)"),
        (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 1, 3), r"^end to end: .*\(2, 1, 62, 62\)"),  # which would broadcast
        (nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3), r"^end to end: .*channels"),
        (nn.Sequential(Conv_C3(3, 8)), nn.Sequential(Conv_C3(3, 1)), r"^0: "),
        (nn.Sequential(Conv_C3(3, 8), Conv_C3(8, 8)), nn.Sequential(Conv_C3(3, 8), Conv_C3(4, 8)), r"^1: .*channels"),
        (nn.Sequential(Conv_C3(3, 8)), nn.Sequential(nn.ModuleDict()), r"^0: "),
    ],
)
def test_verify_names_the_layer_whose_shape_differs(before: nn.Module, after: nn.Module, told: str) -> None:
    with pytest.raises(VerifyError, match=told):
        verify(before.eval(), after.eval())


def test_verify_refuses_outputs_of_another_number() -> None:
    class Twice(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(x), x

    with pytest.raises(VerifyError, match=r"end to end: .*different outputs"):
        verify(nn.Conv2d(3, 8, 3), Twice(3, 8, 3))


def test_verify_stored_sees_the_values_and_not_the_arithmetic() -> None:
    before = model()
    after = deploy(before.double()).float()  # rounded once
    before.float()
    exact, rounded = verify_stored(before, before), verify_stored(before, after)
    assert exact.max_rel == 0.0
    assert (rounded.dtype, rounded.tolerance) == (torch.float64, 1e-5)
    assert 1e-9 < rounded.max_rel < 1e-6  # the rounding of float32 values
    assert "float64 arithmetic, tolerance 1e-05" in str(rounded)
    assert {v.dtype for m in (before, after) for v in m.state_dict().values() if v.is_floating_point()} == {
        torch.float32
    }


class Ranked(nn.Module):
    """A head that gives the largest of its scores first, and which they are, as those without NMS do."""

    def forward(self, x: Tensor) -> Tensor:
        return self.postprocess(x.mean((2, 3)))

    def postprocess(self, scores: Tensor) -> Tensor:
        values, order = scores.sort(descending=True, stable=True)
        return torch.stack((values, order.to(values)))


def test_verify_stored_passes_answers_of_nearly_the_same_score() -> None:
    """The second score is larger by less than float32 has digits, so that folding makes the two equal."""
    block = Conv_C3(1, 2, act=False, identity="none").eval()
    with torch.no_grad():
        block.conv.weight.fill_(0.5)
        block.branch_1x1.conv.weight.copy_(torch.tensor([0, 1e-9]).view(2, 1, 1, 1))
    before = nn.Sequential(block, Ranked())
    after = deploy(before)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    ranks = [copy.deepcopy(m).double()(x)[1].tolist() for m in (before, after)]
    assert ranks == [[[1, 0]], [[0, 1]]]
    assert verify_stored(before, after).ok
    assert "postprocess" not in vars(before[1])


@pytest.mark.parametrize("patched", [False, True])
def test_verify_takes_models_that_share_layers(patched: bool) -> None:
    before = nn.Sequential(Conv_C3(1, 2), Ranked()).eval()
    own = Ranked().postprocess
    if patched:
        before[1].__dict__["postprocess"] = own
    report = verify(before, nn.Sequential(*before))
    assert [row.name for row in report.rows] == ["0", END_TO_END]
    assert report.max_abs == 0.0
    assert vars(before[1]).get("postprocess") is (own if patched else None)


def test_verify_stored_reports_half_without_judging_it() -> None:
    before = model()
    report = verify_stored(before, deploy(before).half())
    assert report.tolerance is None
    assert 1e-5 < report.max_rel < 1e-1
    assert report.ok


def test_verify_needs_to_know_the_channels() -> None:
    with pytest.raises(VerifyError, match="pass x"):
        verify(nn.Identity(), nn.Identity())
