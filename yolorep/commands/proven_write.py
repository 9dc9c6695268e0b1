"""What `expand` and `deploy` share: prove the new model, and choose the precision that it is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from yolorep.errors import CheckpointError, UsageError, VerifyError
from yolorep.hosts import checkpoints
from yolorep.hosts.checkpoints import Checkpoint
from yolorep.numerics import tolerance
from yolorep.verification import verify, verify_as_stored
from yolorep.verification_report import Report


class Storage(Enum):
    """The precision to store a checkpoint in.

    source: the input's precision, if the result keeps its tolerance there.
    """

    source = "the source's"
    half = "float16"
    single = "float32"

    @classmethod
    def of_options(cls, *, half: bool, float32: bool) -> Storage:
        """Return what `--half` and `--float32` ask for.

        Raises:
            UsageError: both are given.
        """
        if half and float32:
            raise UsageError("--half and --float32 exclude each other; give one, or neither for the source's precision")
        return cls.half if half else cls.single if float32 else cls.source


@dataclass(frozen=True)
class Proof:
    """A model in the precision in which it is stored, and the report that it equals another one in float32."""

    model: nn.Module
    dtype: torch.dtype
    report: Report


def check_values(checkpoint: Checkpoint) -> None:
    """Check that no parameter is NaN or infinite: of such a model nothing can be proven.

    Raises:
        CheckpointError: one is; the message names the first.
    """
    for name, parameter in checkpoint.model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(
                f"{checkpoint.path}: {name} holds NaN or infinite values; accepted: weights of a training that did "
                "not diverge"
            )


def prove(checkpoint: Checkpoint, after: nn.Module, storage: Storage, console: Console) -> Proof:
    """Show that `after` computes what the checkpoint's model does, in the precision that it is to be stored in.

    Raises:
        VerifyError: it does not; the report is printed.
        CheckpointError: `--half` was given, and a value does not fit float16.
    """
    before = checkpoint.model
    report = verify(before, after)
    if not report.ok:
        console.print(report)
        reason = report.differences[0] if report.differences else f"error {report.max_rel:.1e} is out of tolerance"
        raise VerifyError(f"{reason} (tolerance {report.tolerance:g}); nothing was written")
    console.print(
        f"verified in float64 arithmetic: {report.largest_error} over {len(report.rows) - 1} "
        f"blocks and end to end, from rounding to float32 (tolerance {report.tolerance:g})"
    )
    if storage is Storage.half:
        model = checkpoints.halved(after)
        error = verify(before, model).max_rel
        console.print(
            f"stored as float16: largest relative error {error:.1e} (float64 arithmetic; reported, not judged)"
        )
        return Proof(model, torch.float16, report)
    if storage is Storage.source and checkpoint.dtype == torch.float16:
        return _as_source(before, after, report, console)
    return Proof(after, torch.float32, report)


def _as_source(before: nn.Module, after: nn.Module, report: Report, console: Console) -> Proof:
    """Keep float16 where the result is within its tolerance, as a file of twice the size would look like a loss."""
    limit = tolerance(torch.float16)
    try:
        model = checkpoints.halved(after)
    except CheckpointError as error:
        reason = str(error).split(";")[0]
    else:
        stored = verify_as_stored(before, model, torch.float16)
        if stored.ok:
            console.print(
                f"stored as float16, as the source is: {stored.largest_error} (tolerance {limit:g}); --float32 stores "
                "float32"
            )
            return Proof(model, torch.float16, report)
        reason = f"in float16, as the source is, the largest relative error would be {stored.max_rel:.1e}"
    console.print(f"stored as float32: {reason} (tolerance {limit:g}); --half stores float16 all the same")
    return Proof(after, torch.float32, report)


def megaparameters(model: nn.Module) -> str:
    """Return the number of parameters as it is printed.

    Example:
        >>> megaparameters(nn.Conv2d(100, 100, 3))
        '0.09 M parameters'
    """
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"


def size_on_disk(path: Path) -> str:
    """Return the size of a file as it is printed."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
