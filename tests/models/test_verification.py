"""`verify` tells models that compute the same from those that do not, and leaves both as they were."""

from __future__ import annotations

import copy
import doctest
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import randomize_
from tests.models.verify_cases import EMPTY, OUTPUTS, STRUCTURES, Detector, Returns
from yolorep import C3, Conv_C3, VerifyError, deploy, verify
from yolorep.numerics import TOLERANCE
from yolorep.verification import END_TO_END, Report, Row, stored_dtype


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


def test_verify_sees_the_values_and_not_the_arithmetic() -> None:
    before = model()
    after = deploy(before.double()).float()  # rounded once
    before.float()
    exact, rounded = verify(before, before), verify(before, after)
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


def test_verify_passes_answers_of_nearly_the_same_score() -> None:
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
    assert verify(before, after).ok
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


def test_verify_reports_half_without_judging_it() -> None:
    before = model()
    report = verify(before, deploy(before).half())
    assert report.tolerance is None
    assert 1e-5 < report.max_rel < 1e-1
    assert report.ok


def test_verify_needs_to_know_the_channels() -> None:
    with pytest.raises(VerifyError, match="pass x"):
        verify(nn.Identity(), nn.Identity())


@pytest.mark.parametrize("case", OUTPUTS)
def test_verify_sees_a_difference_in_any_output(case: str) -> None:
    before, same, other = Returns(OUTPUTS[case]), Returns(OUTPUTS[case]), Returns(OUTPUTS[case], 1.0)
    assert verify(before, same).ok
    assert not verify(before, other).ok


@pytest.mark.parametrize("case", STRUCTURES)
def test_verify_refuses_outputs_of_another_structure(case: str) -> None:
    before, same, other = Returns(STRUCTURES[case]), Returns(STRUCTURES[case]), Returns(STRUCTURES[case], 1.0)
    assert verify(before, same).ok
    with pytest.raises(VerifyError, match="end to end: the models have different outputs: output"):
        verify(before, other)


@pytest.mark.parametrize("case", EMPTY)
def test_verify_refuses_outputs_that_hold_nothing(case: str) -> None:
    with pytest.raises(VerifyError, match="hold no tensor with values; nothing can be compared"):
        verify(Returns(EMPTY[case]), Returns(EMPTY[case]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stride", torch.tensor([8.0, 32.0])),
        ("stride", torch.tensor([8.0])),
        ("stride", None),
        ("anchors", [[10, 13], [16, 31]]),
        ("nc", 3),
        ("nl", 2),
        ("no", 19),
        ("reg_max", 1),
        ("names", ["blue", "red"]),
        ("names", ["red"]),
        ("end2end", True),
    ],
)
@pytest.mark.parametrize("of_head", [True, False])
def test_verify_sees_an_attribute_of_the_head_that_differs(name: str, value: object, of_head: bool) -> None:
    before, after = Detector(), Detector()
    assert verify(before, after).ok
    setattr(after.model[-1] if of_head else after, name, value)
    report = verify(before, after)
    assert not report.ok
    assert report.max_rel == 0.0
    assert f"FAILS: {name} of {'the head' if of_head else 'model'} differs" in str(report)


def test_verify_takes_names_as_a_list_or_a_mapping() -> None:
    before, after = Detector(), Detector()
    after.names, after.model[-1].names = ["red", "blue"], {0: "red", 1: "blue"}
    assert verify(before, after).ok


@pytest.mark.parametrize("layer", ["boxes", "scores"])
@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("fault", [1e-3, 1e-4])
def test_verify_sees_a_fault_in_one_channel_of_a_head(layer: str, channel: int, fault: float) -> None:
    before, after = Detector(), Detector()
    with torch.no_grad():
        getattr(after.model[-1], layer).weight[channel] *= 1 + fault
    assert not verify(before, after).ok
    with torch.no_grad():
        getattr(after.model[-1], layer).weight[channel] /= 1 + fault
    assert verify(before, after).ok


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.rand(1, 5, 32, 32), "5"),
        (torch.rand(3, 32, 32), "x has 3 axes, (3, 32, 32); accepted: floating-point values, (batch, channels"),
        (torch.rand(32), "x has 1 axes"),
        (torch.rand(0, 3, 32, 32), "x is empty, (0, 3, 32, 32); accepted"),
        (torch.rand(1, 3, 0, 32), "x is empty"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "x holds uint8 values; accepted: .* x.float"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.bool), "x holds bool values"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.complex64), "x holds complex64 values"),
        (torch.full((1, 3, 32, 32), math.nan), "x holds values that are not finite"),
        (torch.rand(1, 3, 1, 1), "does not take an input of shape"),
        ([[1.0]], "x is a list, not a tensor"),
    ],
)
def test_verify_refuses_an_input_that_is_no_batch_of_images(x: Any, told: str) -> None:
    before = Detector()
    with pytest.raises(VerifyError) as error:
        verify(before, Detector(), x)
    assert re.search(told.replace("(", r"\(").replace(")", r"\)"), str(error.value))
    assert "\n" not in str(error.value)


def settled(seed: int) -> nn.Module:
    """A deep model whose batch norms have seen many batches, some channels with a mean far beyond their deviation."""
    torch.manual_seed(seed)
    layers = [Conv_C3(3 if not i else 16, 16, block=("repvgg", "mobileone", "dbb", "acb")[i % 4]) for i in range(10)]
    result = nn.Sequential(*layers)
    with torch.no_grad():
        for _ in range(20):
            result(torch.rand(8, 3, 16, 16))
    return result.eval()


@pytest.mark.parametrize("seed", range(4))
def test_verify_passes_a_correct_fold_of_settled_statistics(seed: int) -> None:
    before = settled(seed)
    after = deploy(before)
    report = verify(before, after)
    assert report.ok, report
    assert (report.dtype, report.tolerance) == (torch.float64, 1e-5)
    assert verify(before, copy.deepcopy(after).double()).ok  # widened, it is accurate to float32 still
    single = verify(before, after, dtype=torch.float32)
    assert single.ok, single
    with torch.no_grad():
        after[7].conv.weight[3] *= 1 + 1e-3
    report = verify(before, after)
    assert [row.name for row in report.rows if not report.passes(row)] == ["7", END_TO_END]
    assert not verify(before, after, dtype=torch.float32).ok


def test_rounding_excuses_a_channel_in_which_large_terms_cancel_and_no_fault_beside_it() -> None:
    before = nn.Sequential(Conv_C3(3, 8, 1, act=False)).eval()
    x = 0.5 + 1e-3 * torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before[0].conv.weight[0] += 30  # its output has a mean of thousands of deviations
        y = before[0].conv(x)
        before[0].bn.running_mean.copy_(y.mean((0, 2, 3)))
        before[0].bn.running_var.copy_(y.var((0, 2, 3)))
    after = deploy(before)
    report = verify(before, after, x)
    assert report.max_rel > 1e-5
    assert report.ok
    assert "ok: rounding: over the tolerance only by" in " ".join(str(report).split())
    assert max(row.judged for row in report.rows) <= 1e-5
    assert report.largest_error.endswith(" beyond the rounding of the weights")
    for channel, fault in ((0, 2e-3), (1, 1e-4)):
        wrong = copy.deepcopy(after)
        with torch.no_grad():
            wrong[0].conv.bias[channel] += fault * before(x)[:, channel].abs().max()
        assert not verify(before, wrong, x).ok, channel


def test_a_model_of_float64_is_judged_as_such() -> None:
    before = model().double()
    for m in before.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.0)
    after = deploy(before)
    assert stored_dtype(after) == torch.float64
    assert verify(before, after).tolerance == 1e-10
    assert stored_dtype(after.float().double()) == torch.float32
    assert stored_dtype(nn.Identity()) == torch.float64


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_may_verify_one_model(threads: int) -> None:
    before = nn.Sequential(Conv_C3(1, 2), Ranked()).eval()
    after = deploy(before)
    with ThreadPoolExecutor(threads) as pool:
        reports = list(pool.map(lambda _: verify(before, after), range(4 * threads)))
    assert all(report.ok and len(report.rows) == 2 for report in reports)
    assert "postprocess" not in vars(before[1])
    assert not before[0]._forward_hooks


class Unused(nn.Module):
    """A model with an auxiliary block that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = Conv_C3(3, 8), Conv_C3(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def test_a_block_that_the_model_does_not_run_is_compared_too() -> None:
    before = randomize_(Unused()).eval()
    after = deploy(before)
    report = verify(before, after)
    assert report.ok
    assert [row.name for row in report.rows] == ["main", "auxiliary (not run by the model)", END_TO_END]
    with torch.no_grad():
        after.auxiliary.conv.bias[0] += 1e-2
    assert not verify(before, after).ok


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_said(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Tensor:
        raise error

    before = Returns(fails)
    with pytest.raises(VerifyError, match=r"^end to end: out of memory"):
        verify(before, before)
    monkeypatch.setattr("yolorep.verification.deepcopy", fails)
    with pytest.raises(VerifyError, match=r"^out of memory while the model before was copied to torch.float64"):
        verify(before, before)


def test_verify_copies_a_model_with_pruning_masks_and_says_what_it_cannot_copy() -> None:
    from torch.nn.utils import prune

    before = model()
    prune.l1_unstructured(before[0].conv, "weight", 0.5)
    before(torch.rand(1, 3, 32, 32))
    assert verify(before, before).ok
    before.lock = threading.Lock()
    with pytest.raises(VerifyError, match="the model before cannot be copied: cannot pickle"):
        verify(before, before)


def test_verify_refuses_a_model_without_values() -> None:
    with pytest.raises(VerifyError, match="the model after has no values"):
        verify(model(), model().to("meta"))


def test_verify_ignores_autocast_and_tf32_and_restores_both() -> None:
    seen = []

    def watch(y: Tensor, _: Tensor) -> Tensor:
        seen.append((y.dtype, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return y

    before = Returns(watch)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert verify(before, before, dtype=torch.float32).ok
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {(torch.float32, "highest", False)}


def test_examples() -> None:
    from yolorep import model_outputs, verification

    for module in (verification, model_outputs):
        assert doctest.testmod(module).failed == 0
