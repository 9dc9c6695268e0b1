"""The report of `yolorep quantize`: figures of the float and of each 8-bit model, and the layers that lose most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

FLOAT32 = "float32"


@dataclass(frozen=True)
class Candidate:
    """A model that was measured.

    scheme: its name, "float32" for the model before quantization. floats: layers kept in float beside the decoding.
    figures: of the host's own validation, such as mAP50-95, from 0 to 1. bytes: size of the file or folder.
    finetuned: epochs of fine-tuning with 8-bit rounding before it was quantized.
    """

    scheme: str
    figures: Mapping[str, float]
    bytes: int
    floats: tuple[str, ...] = ()
    finetuned: int = 0

    @property
    def label(self) -> str:
        tuned = ", fine-tuned" if self.finetuned else ""
        layers = len(self.floats)
        return f"{self.scheme}{tuned}" + (f", {layers} layer{'s' * (layers > 1)} in float" if layers else "")


@dataclass
class QuantizationReport:
    """All candidates of one run, the float model first.

    figure: the figure that is judged. tolerated: the largest accepted drop of it, in points (hundredths).
    seconds: median latency of one image, by label of the candidate.
    layer_errors: relative error of each convolution's output under the most accurate scheme, by layer name.
    """

    figure: str
    tolerated: float
    candidates: list[Candidate] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    layer_errors: dict[str, float] = field(default_factory=dict)

    @property
    def float32(self) -> Candidate:
        return self.candidates[0]

    @property
    def quantized(self) -> list[Candidate]:
        """The 8-bit candidates, before and after fine-tuning."""
        return [candidate for candidate in self.candidates if candidate.scheme != FLOAT32]

    def drop(self, candidate: Candidate) -> float:
        """Return the loss against float32 in points; negative where the 8-bit model is better."""
        return 100 * (self.float32.figures[self.figure] - candidate.figures[self.figure])

    def within(self, candidate: Candidate) -> bool:
        """Whether the loss is tolerated."""
        return self.drop(candidate) <= self.tolerated

    @property
    def chosen(self) -> Candidate:
        """The fastest candidate within tolerance; the most accurate one where there is none.

        Fine-tuning changes weights and no layer: of one scheme with and without it, the more accurate one is taken.
        """
        quantized = self.quantized
        good = [candidate for candidate in quantized if self.within(candidate)]
        if good:
            fastest = min(good, key=lambda candidate: self.seconds.get(candidate.label, 0))
            layers = fastest.scheme, fastest.floats
            quantized = [candidate for candidate in good if (candidate.scheme, candidate.floats) == layers]
        return min(quantized, key=self.drop)

    def table(self) -> Table:
        """Return the table that the command prints."""
        names = list(self.float32.figures)
        title = f"tolerated loss of {self.figure}: {self.tolerated:g} points"
        view = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))  # masks fit 80 characters
        view.add_column("scheme", overflow="fold", min_width=len("fine-tuned"))
        for name in (*names, "loss", "ms", "/ float32", "MB", ""):
            view.add_column(name.replace(" ", "\n"), justify="right", overflow="fold")
        for candidate in self.candidates:
            first = candidate is self.float32
            verdict = "" if candidate.scheme == FLOAT32 else "ok" if self.within(candidate) else "too much"
            view.add_row(
                candidate.label,
                *(f"{candidate.figures[name]:.4f}" for name in names),
                "" if first else f"{self.drop(candidate):+.2f}",
                f"{1e3 * self.seconds[candidate.label]:.1f}",
                f"{self.seconds[candidate.label] / self.seconds[self.float32.label]:.2f}",
                f"{candidate.bytes / 1e6:.1f}",
                verdict,
            )
        return view

    def worst_layers(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the layers with the largest errors, largest first."""
        return sorted(self.layer_errors.items(), key=lambda item: -item[1])[:count]

    def record(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "figure": self.figure,
            "tolerated_points": self.tolerated,
            "chosen": self.chosen.label,
            "candidates": [
                {"label": c.label, **asdict(c), "seconds": self.seconds[c.label], "loss_points": self.drop(c)}
                for c in self.candidates
            ],
            "layer_errors": dict(self.worst_layers(len(self.layer_errors))),
        }
