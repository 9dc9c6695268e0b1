"""`yolorep expand`: from a stock checkpoint file to one with rep blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from yolorep.commands.proven_write import Proof, Storage, check_values, megaparameters, prove, size_on_disk
from yolorep.expansion import expand
from yolorep.hosts import checkpoints
from yolorep.stock_layers import rep_blocks, stock_convs


@dataclass(frozen=True)
class Expanded:
    """What was written. layers: names of the expanded layers. candidates: how many stock convolutions there were."""

    out: Path
    layers: tuple[str, ...]
    candidates: int
    proof: Proof


def expand_file(
    source: Path,
    out: Path,
    block: str,
    identity: str,
    select: Sequence[str | int] | None,
    *,
    storage: Storage = Storage.source,
    overwrite: bool = False,
    repo: Path | None = None,
    console: Console,
) -> Expanded:
    """Write the checkpoint with its convolutions expanded; it is verified before it is written.

    Raises:
        CheckpointError, HostError, BlockError, UsageError: the input or an option is not accepted.
        VerifyError: the expanded model does not compute the same; nothing is written.
    """
    checkpoints.check_target(source, out, overwrite=overwrite)
    checkpoint = checkpoints.load(source, repo)
    check_values(checkpoint)
    expanded = expand(checkpoint.model, block, identity=identity, select=select)
    candidates = sum(1 for _ in stock_convs(checkpoint.model))
    proof = prove(checkpoint, expanded, storage, console)
    checkpoints.save(checkpoint, proof.model, out, overwrite=overwrite)
    layers = tuple(rep_blocks(expanded))
    console.print(
        f"{len(layers)} layers expanded with {block}, identity {identity}, of {candidates} stock convolutions"
    )
    sizes = f"{megaparameters(checkpoint.model)} → {megaparameters(expanded)}"
    console.print(f"{sizes}; wrote {out} ({size_on_disk(out)})")
    return Expanded(out, layers, candidates, proof)
