"""Whether a backend finds the same boxes as PyTorch does in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

CONFIDENCE = 0.25  # boxes from here on count, as in the hosts' predict
NEAR = 0.15  # a partner may have a confidence from here on, so that a box at the threshold is no difference
IOU = 0.9  # least overlap of partners
SAME, CLOSE, DIFFERENT = "same", "close", "different"
SAME_PIXELS, SAME_CONFIDENCE = 0.5, 1e-3
CLOSE_SHARE = 0.95  # least share of boxes with a partner
SAME_OUTPUT, CLOSE_OUTPUT = 1e-3, 5e-2  # relative to the largest output, where there are no boxes to compare


@dataclass(frozen=True)
class Agreement:
    """Comparison with the reference.

    output: largest difference of any output, relative to its largest value. boxes: number of boxes of the reference;
    None for a model without boxes. share: share of all boxes that have a partner: same class, IoU ≥ 0.9, in the other
    result. pixels, confidence: largest differences of partners.
    """

    output: float
    boxes: int | None = None
    share: float = 1.0
    pixels: float = 0.0
    confidence: float = 0.0

    @property
    def verdict(self) -> str:
        """Return `same`, `close` or `different`."""
        if not self.boxes:
            return SAME if self.output <= SAME_OUTPUT else CLOSE if self.output <= CLOSE_OUTPUT else DIFFERENT
        if self.share == 1 and self.pixels <= SAME_PIXELS and self.confidence <= SAME_CONFIDENCE:
            return SAME
        return CLOSE if self.share >= CLOSE_SHARE else DIFFERENT

    def __str__(self) -> str:
        if not self.boxes:
            return f"{self.verdict}: outputs {self.output:.0e}"
        return f"{self.verdict}: {self.share:.0%}, {self.pixels:.1f} px"


def agreement(
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    boxes: Sequence[Tensor] | None = None,
    found: Sequence[Tensor] | None = None,
) -> Agreement:
    """Compare the outputs of a backend, and its boxes after NMS, with those of the reference.

    expected, got: output tensors. boxes, found: (n, 6) for each image: x1, y1, x2, y2, confidence, class.
    """
    output = max((_relative(a, b) for a, b in zip(expected, got, strict=False)), default=float("inf"))
    if len(expected) != len(got):
        output = float("inf")
    if boxes is None or found is None:
        return Agreement(output)
    counted = matched = 0
    pixels = confidence = 0.0
    for a, b in zip(boxes, found, strict=True):
        for one, other in ((a, b), (b, a)):
            sure = one[one[:, 4] >= CONFIDENCE]
            partner, has = _partners(sure, other[other[:, 4] >= NEAR])
            counted, matched = counted + len(sure), matched + int(has.sum())
            if has.any():
                pixels = max(pixels, float((sure[has, :4] - partner[has, :4]).abs().max()))
                confidence = max(confidence, float((sure[has, 4] - partner[has, 4]).abs().max()))
    reference = sum(int((a[:, 4] >= CONFIDENCE).sum()) for a in boxes)
    return Agreement(output, reference, matched / counted if counted else 1.0, pixels, confidence)


def _partners(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best partner of each box, (n, 6), and whether it is one, (n,)."""
    if not len(boxes) or not len(others):
        return torch.zeros(len(boxes), 6), torch.zeros(len(boxes), dtype=torch.bool)
    overlap = box_iou(boxes[:, :4], others[:, :4])
    overlap[boxes[:, 5, None] != others[None, :, 5]] = 0
    best, index = overlap.max(1)
    return others[index], best >= IOU


def _relative(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    error = float((expected - got).abs().max()) / max(float(expected.abs().max()), 1e-30)
    return error if error == error else float("inf")
