"""`yolorep expand`: from a stock checkpoint file to one with rep blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from yolorep.blocks.laws import MASK
from yolorep.blocks.registry import block_of
from yolorep.blocks.starts import SPLIT
from yolorep.calibration import MEASURED, calibration_batches
from yolorep.commands.proven_write import Proof, Storage, check_values, megaparameters, prove, size_on_disk
from yolorep.errors import UsageError
from yolorep.expansion import expand
from yolorep.hosts import checkpoints
from yolorep.policy import Policy
from yolorep.stock_layers import rep_blocks, stock_convs

CHANGING = ("even", "paper")  # starts that change what a trained model computes


@dataclass(frozen=True)
class Expanded:
    """What was written. layers: names of the expanded layers. candidates: how many stock convolutions there were."""

    out: Path
    layers: tuple[str, ...]
    candidates: int
    proof: Proof


@dataclass(frozen=True)
class Images:
    """Training images for the statistics of start `split`. data: a data YAML. side: pixels."""

    data: Path
    side: int

    @classmethod
    def of_options(cls, policy: Policy, data: Path | None, side: int) -> Images | None:
        """Return what `--data` and `--imgsz` ask for.

        Raises:
            UsageError: a start that needs images has none, or one that needs none has them.
        """
        if policy.start in CHANGING:
            raise UsageError(f"--start {policy.start} changes what a trained model computes; accepted: silent, split")
        if data is not None and policy.start != SPLIT:
            raise UsageError("--data is for --start split, which measures statistics on training images; leave it out")
        return None if data is None else cls(data, side)


def expand_file(
    source: Path,
    out: Path,
    policy: Policy,
    images: Images | None = None,
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
    block, identity = policy.block, policy.identity
    batches = None if images is None else calibration_batches(images.data, MEASURED, images.side)
    options: Any = {"identity": identity, "select": policy.select, "start": policy.start, "images": batches}
    expanded = expand(checkpoint.model, block, **options)
    candidates = sum(1 for _ in stock_convs(checkpoint.model))
    proof = prove(checkpoint, expanded, storage, console)
    checkpoints.save(checkpoint, proof.model, out, overwrite=overwrite)
    layers = tuple(rep_blocks(expanded))
    if block_of(block).law == MASK:
        console.print(f"{block} adds no branch: training this file steps its kernels by masks, and it stays stock")
    else:
        console.print(
            f"{len(layers)} layers expanded with {block}, identity {identity}, of {candidates} stock convolutions"
        )
    sizes = f"{megaparameters(checkpoint.model)} → {megaparameters(expanded)}"
    console.print(f"{sizes}; wrote {out} ({size_on_disk(out)})")
    return Expanded(out, layers, candidates, proof)
