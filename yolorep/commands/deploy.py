"""`yolorep deploy`: from a checkpoint file with rep blocks to a stock one."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import nn

from yolorep import model_yaml
from yolorep.commands.proven_write import Storage, check_values, megaparameters, prove, size_on_disk
from yolorep.deployment import deployed
from yolorep.errors import CheckpointError
from yolorep.host import host_of, unwrapped
from yolorep.hosts import checkpoints
from yolorep.sharing import weigh_twins_


def deploy_file(
    source: Path,
    out: Path,
    *,
    storage: Storage = Storage.source,
    overwrite: bool = False,
    share: float | None = None,
    repo: Path | None = None,
    console: Console,
) -> None:
    """Write the checkpoint with all rep blocks folded, also other projects' blocks, and verify it before writing.

    Blocks that do not fold stay as they are; each is printed with the reason.
    share: of the frozen paths of blocks `twin` (`sharing.weigh_twins_`); None for the one that was trained.

    Raises:
        BlockError: the share is not accepted, or the model has no such block.
        CheckpointError, HostError, FoldError, UsageError: the input is not a rep checkpoint, or does not fold.
        VerifyError: the deployed model does not compute the same; nothing is written.
    """
    checkpoints.check_target(source, out, overwrite=overwrite)
    checkpoint = checkpoints.load(source, repo)
    check_values(checkpoint)
    if share is not None:
        twins = weigh_twins_(checkpoint.model, share)
        console.print(f"the frozen paths of {twins} twins have a share of {share:g}; trained with 0.5")
    deployment = deployed(checkpoint.model)
    model, folding = deployment.model, deployment.folding
    for reason in folding.left:
        console.print(f"not folded: {reason}", markup=False)
    for note in folding.notes:
        console.print(f"note: {note}", markup=False)
    if not folding.folded and not folding.notes:
        if not folding.left:
            raise CheckpointError(f"{source} has no rep blocks: it is deployed, or stock, already")
        raise CheckpointError(f"none of the rep blocks in {source} folds ({folding.left[0]}); nothing was written")
    if folding.foreign:
        console.print(
            f"note: {folding.foreign[0]} and other blocks of the model's own classes have their branches again in a "
            f"model that is built from its YAML: fine-tune from {source}, not from {out}",
            markup=False,
        )
    proof = prove(checkpoint, model, storage, console)
    checkpoints.save(checkpoint, proof.model, out, overwrite=overwrite)
    sizes = f"{megaparameters(checkpoint.model)} → {megaparameters(model)}"
    console.print(f"{len(folding.folded)} blocks folded; {sizes}; wrote {out} ({size_on_disk(out)})")
    rows = _rows_of_yolorep(model)
    if rows:
        console.print(
            f"note: no stock row describes the layers of {', '.join(rows)} in its YAML: it predicts and exports "
            "without yolorep, but the host alone cannot train it further; yolorep train (yolorep yolov5 train.py) can",
            markup=False,
        )
    kept = sorted({type(m).__name__ for m in model.modules() if type(m).__module__.startswith("yolorep")})
    if kept:
        console.print(f"note: {', '.join(kept)} stay in the model, so yolorep is needed where it is loaded")


def _rows_of_yolorep(model: nn.Module) -> list[str]:
    """Return the names of the rows of a deployed model's YAML that a host builds only with yolorep."""
    core = unwrapped(model)
    yaml = getattr(core, "yaml", None)
    if not isinstance(yaml, dict):
        return []
    return sorted({name for name, _ in model_yaml.plan(yaml, host_of(core), checked=False).rows.values()})
