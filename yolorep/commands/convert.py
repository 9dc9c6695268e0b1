"""From checkpoint file to checkpoint file: expand, deploy and verify as the command line does them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch import nn

from yolorep.deployment import deploy
from yolorep.errors import CheckpointError, VerifyError
from yolorep.expansion import expand
from yolorep.foreign import foreign_blocks
from yolorep.host import own_blocks
from yolorep.hosts import checkpoints, evaluate
from yolorep.stock_layers import rep_blocks
from yolorep.verification import verify


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
    checkpoints.save(checkpoint, _proven(checkpoint.model, expanded, console, half=half), out, overwrite=overwrite)
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
    checkpoints.save(checkpoint, _proven(checkpoint.model, deployed, console, half=half), out, overwrite=overwrite)
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
    imgsz: int | None = None,
    repo: Path | None = None,
    console: Console,
) -> bool:
    """Compare two checkpoints on noise, on images and on a data set; True if all agree.

    images: to compare on what the models answer: boxes after NMS, with masks or keypoints, or class probabilities.
    data: to compare the figures of the host's own validation on. imgsz: pixels, of both; by default the task's.

    Raises:
        CheckpointError, HostError, VerifyError: an input is not there, or the two cannot be compared.
    """
    report = verify(checkpoints.load(before, repo).model, checkpoints.load(after, repo).model)
    console.print(report)
    agree = report.ok
    if images is None and data is None:
        return agree
    a, b = (evaluate.evaluator(path, imgsz=imgsz, repo=repo) for path in (before, after))
    if images is not None:
        alike = evaluate.compare_images(a, b, images)
        console.print(str(alike))
        agree &= alike.ok
    return agree if data is None else agree & _same_figures(a, b, data, console)


def _same_figures(a: evaluate.Evaluator, b: evaluate.Evaluator, data: Path, console: Console) -> bool:
    before, after = (evaluate.figures(one, data) for one in (a, b))
    width = max(map(len, before))
    for name, value in before.items():
        console.print(f"{name:{width}} {value:.5f} → {after[name]:.5f} ({after[name] - value:+.1e})")
    if not any(before.values()) and not any(after.values()):
        console.print(f"all figures on {data} are 0 for either model: there was nothing to compare")
    return all(evaluate.same_figure(value, after[name]) for name, value in before.items())


def _proven(before: nn.Module, after: nn.Module, console: Console, *, half: bool) -> nn.Module:
    """The model to store: `after`, or a float16 copy of it, once it is shown to compute what `before` does."""
    report = verify(before, after)
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
    error = verify(before, stored).max_rel
    console.print(f"stored as float16: largest relative error {error:.1e} (float64 arithmetic; reported, not judged)")
    return stored


def _undeployed(model: nn.Module) -> int:
    """How many blocks, yolorep's or another project's, still have their branches. The host's own are stock."""
    return len(rep_blocks(model)) + len(foreign_blocks(model, leave=own_blocks(model)))


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
