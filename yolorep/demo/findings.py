"""What the demo found out, and how it says it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from yolorep.bench.measure import Result
from yolorep.bench.subjects import DEPLOYED
from yolorep.demo.plan import Plan
from yolorep.demo.training import Trained
from yolorep.hosts.evaluate import same_figure
from yolorep.hosts.predictions import ResultReport
from yolorep.stock_layers import rep_blocks, stock_convs
from yolorep.verification import Report

LEARNED = 0.1  # mAP50 below which a training has shown nothing
NOISE = 0.03  # mAP50-95: what another seed changes in a training of this length


@dataclass(frozen=True)
class Findings:
    """Results of the demo.

    rep, stock: both trainings. blocks: convolutions with branches. convolutions: convolutions of the stock model.
    parameters: form → number. report, boxes: deployed against trained. before, after: mAP50 and mAP50-95 of the
    checkpoint with branches and of the deployed one. speed: inference of all forms.
    """

    plan: Plan
    rep: Trained
    stock: Trained
    blocks: int
    convolutions: int
    parameters: dict[str, int]
    report: Report
    boxes: ResultReport
    before: dict[str, float]
    after: dict[str, float]
    speed: Result

    @property
    def ok(self) -> bool:
        """Return whether the deployed model computes the same as the trained one."""
        same = (same_figure(value, self.after[name]) for name, value in self.before.items())
        return self.report.ok and self.boxes.ok and all(same)

    @property
    def fps(self) -> dict[str, float]:
        """Return images per second by form, from the ratios to the deployed one within each round.

        On a busy machine the medians of two equal networks, taken apart, may differ by half.
        """
        timing = self.speed.timing
        deployed = self.speed.batch / timing.time(DEPLOYED).median
        return {form: deployed * timing.ratio(DEPLOYED, form).median for form in timing.seconds}

    @property
    def what_rep_did(self) -> str:
        """Return one sentence on the branches."""
        return what_rep_did(self.blocks, self.convolutions)

    @property
    def verdict(self) -> str:
        """Return a sentence on the comparison with stock and on its limits."""
        if max(self.rep.best.map50, self.stock.best.map50) < LEARNED:
            return "Neither model learned to detect in so few steps; --minutes, --epochs and --images give them more."
        gain = self.rep.best.map50_95 - self.stock.best.map50_95
        ended = "ended level with" if abs(gain) < NOISE else "ended above" if gain > 0 else "ended below"
        return (
            f"In this run rep {ended} stock ({gain:+.3f} mAP50-95). One short run proves nothing: another seed changes "
            f"mAP50-95 by about {NOISE}. Branches cost training time and do not always pay; compare on your own data."
        )


def what_rep_did(blocks: int, convolutions: int) -> str:
    """Return one sentence on the branches: how many convolutions got some, and which."""
    return (
        f"{blocks} of {convolutions} convolutions of YOLOv5n got branches beside their kernel: a 1x1 convolution, and "
        "an identity (a second 1x1 convolution where in ≠ out or the stride is 2), each with its own batch norm."
    )


def counted(rep: nn.Module, stock: nn.Module) -> tuple[int, int]:
    """Return the number of convolutions with branches, and the number of convolutions of the stock model."""
    return len(rep_blocks(rep)), len(list(stock_convs(stock)))


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
