"""From checkpoint file to checkpoint file: expand, deploy and verify as the command line does them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import nn

from yolorep.errors import CheckpointError, VerifyError
from yolorep.foreign import foreign_blocks
from yolorep.hosts import checkpoints, classify, evaluate
from yolorep.selection import own_blocks, rep_blocks
from yolorep.surgery import deploy, expand
from yolorep.verify import verify_stored


def expand_file(
    source: Path,
    out: Path,
    block: str,
    identity: str,
    select: Sequence[str | int] | None,
    *,
    half: bool = False,
    overwrite: bool = False,
    repo: Path | None = None,
    console: Console,
) -> None:
    """Write the checkpoint with its convolutions expanded; verified before it is written.

    Raises:
        CheckpointError, HostError, BlockError: the input or an option is not what it takes.
        VerifyError: the expanded model does not compute the same; nothing is written.
    """
    checkpoints.check_target(source, out, overwrite=overwrite)
    checkpoint = checkpoints.load(source, repo)
    expanded = expand(checkpoint.model, block, identity=identity, select=select)
    checkpoints.save(checkpoint, _proven(checkpoint.model, expanded, console, half=half), out)
    console.print(
        f"{len(rep_blocks(expanded))} layers expanded; {_size(checkpoint.model)} → {_size(expanded)}; wrote {out}"
    )


def deploy_file(
    source: Path,
    out: Path,
    *,
    half: bool = False,
    overwrite: bool = False,
    repo: Path | None = None,
    console: Console,
) -> None:
    """Write the checkpoint with its rep blocks, other projects' too, folded; verified before it is written.

    Raises:
        CheckpointError, HostError, FoldError: the input is not a rep checkpoint, or does not fold.
        VerifyError: the deployed model does not compute the same; nothing is written.
    """
    checkpoints.check_target(source, out, overwrite=overwrite)
    checkpoint = checkpoints.load(source, repo)
    blocks = _undeployed(checkpoint.model)
    if not blocks:
        raise CheckpointError(f"{source} has no rep blocks: it is deployed, or stock, already")
    deployed = deploy(checkpoint.model)
    blocks -= _undeployed(deployed)
    if not blocks:
        raise CheckpointError(f"none of the rep blocks in {source} folds; the warnings say why")
    checkpoints.save(checkpoint, _proven(checkpoint.model, deployed, console, half=half), out)
    console.print(f"{blocks} blocks folded; {_size(checkpoint.model)} → {_size(deployed)}; wrote {out}")
    ours = sorted({type(m).__name__ for m in deployed.modules() if type(m).__module__.startswith("yolorep")})
    if ours:
        console.print(f"note: {', '.join(ours)} stay in the model, so yolorep is needed where it is loaded")


def verify_files(
    before: Path,
    after: Path,
    *,
    images: Path | None = None,
    data: Path | None = None,
    imgsz: int = 640,
    repo: Path | None = None,
    console: Console,
) -> bool:
    """Compare two checkpoints on noise, on images and on a data set; True if all agree.

    images: to compare the boxes after NMS on, or a classifier's probabilities. data: to compare mAP on, or accuracy.

    Raises:
        CheckpointError, HostError, VerifyError: an input is not there, or the two cannot be compared.
    """
    a, b = checkpoints.load(before, repo), checkpoints.load(after, repo)
    report = verify_stored(a.model, b.model)
    console.print(report)
    agree, classifier = report.ok, classify.is_classifier(a)
    if images is not None:
        alike: evaluate.BoxReport | classify.ClassReport
        if classifier:
            alike = classify.compare_classes(before, after, images, imgsz=imgsz)
        else:
            alike = evaluate.compare_boxes(before, after, images, imgsz=imgsz, repo=repo)
        console.print(str(alike))
        agree &= alike.ok
    if data is not None:
        measure = classify.accuracy if classifier else partial(evaluate.mean_average_precision, repo=repo)
        figures = [measure(path, data, imgsz=imgsz) for path in (before, after)]
        for name, x, y in zip(("top-1", "top-5") if classifier else ("mAP50", "mAP50-95"), *figures, strict=True):
            console.print(f"{name:8} {x:.5f} → {y:.5f} ({y - x:+.1e})")
            agree &= abs(x - y) <= evaluate.MAP_TOLERANCE
    return agree


def _proven(before: nn.Module, after: nn.Module, console: Console, *, half: bool) -> nn.Module:
    """The model to store: `after`, or a float16 copy of it, once it is shown to compute what `before` does."""
    report = verify_stored(before, after)
    if not report.ok:
        console.print(report)
        raise VerifyError(f"error {report.max_rel:.1e} is out of tolerance ({report.tolerance:g}); nothing was written")
    console.print(
        f"verified in float64 arithmetic: largest relative error {report.max_rel:.1e} over {len(report.rows) - 1} "
        f"blocks and end to end, from rounding to float32 (tolerance {report.tolerance:g})"
    )
    if not half:
        return after
    stored = checkpoints.halved(after)
    error = verify_stored(before, stored).max_rel
    console.print(f"stored as float16: largest relative error {error:.1e} (float64 arithmetic; reported, not judged)")
    return stored


def _undeployed(model: nn.Module) -> int:
    """How many blocks, yolorep's or another project's, still have their branches. The host's own are stock."""
    return len(rep_blocks(model)) + len(foreign_blocks(model, leave=own_blocks(model)))


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
