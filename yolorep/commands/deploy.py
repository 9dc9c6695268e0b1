"""`yolorep deploy`: from a checkpoint file with rep blocks to a stock one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import nn

from yolorep.commands.proven_write import Proof, Storage, check_values, megaparameters, prove, size_on_disk
from yolorep.deployment import deploy
from yolorep.errors import CheckpointError
from yolorep.hosts import checkpoints


@dataclass(frozen=True)
class Deployed:
    """What was written. folded: names of the blocks that became stock layers. left: what stayed, and why."""

    out: Path
    folded: tuple[str, ...]
    left: tuple[str, ...]
    proof: Proof


def deploy_file(
    source: Path,
    out: Path,
    *,
    storage: Storage = Storage.source,
    overwrite: bool = False,
    repo: Path | None = None,
    console: Console,
) -> Deployed:
    """Write the checkpoint with its rep blocks, those of other projects too, folded; verified before it is written.

    Blocks that do not fold stay as they are; each is printed with the reason.

    Raises:
        CheckpointError, HostError, FoldError, UsageError: the input is not a rep checkpoint, or does not fold.
        VerifyError: the deployed model does not compute the same; nothing is written.
    """
    checkpoints.check_target(source, out, overwrite=overwrite)
    checkpoint = checkpoints.load(source, repo)
    check_values(checkpoint)
    model, folded, left = deployed_model(checkpoint.model)
    for reason in left:
        console.print(f"not folded: {reason}")
    if not folded and not left:
        raise CheckpointError(f"{source} has no rep blocks: it is deployed, or stock, already")
    if not folded:
        raise CheckpointError(f"none of the rep blocks in {source} folds ({left[0]}); nothing was written")
    proof = prove(checkpoint, model, storage, console)
    checkpoints.save(checkpoint, proof.model, out, overwrite=overwrite)
    sizes = f"{megaparameters(checkpoint.model)} → {megaparameters(model)}"
    console.print(f"{len(folded)} blocks folded; {sizes}; wrote {out} ({size_on_disk(out)})")
    ours = sorted({type(m).__name__ for m in model.modules() if type(m).__module__.startswith("yolorep")})
    if ours:
        console.print(f"note: {', '.join(ours)} stay in the model, so yolorep is needed where it is loaded")
    return Deployed(out, folded, left, proof)


def deployed_model(model: nn.Module) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Deploy a copy of a model; return it, the names of the folded blocks, and what was left with the reason.

    The blocks are searched and folded once: what was folded is told by comparing the layers before and after.

    Raises:
        FoldError: as `yolorep.deploy`.
    """
    result = deepcopy(model)
    before = dict(_shapes(result))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deploy(result, inplace=True)
    left = []
    for warning in caught:
        if " is left as it is: " in str(warning.message):
            left.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    after = dict(_shapes(result))
    changed = sorted(name for name, shape in before.items() if name in after and after[name] != shape)
    folded = tuple(name for name in changed if not any(name.startswith(f"{other}.") for other in changed))
    return result, folded, tuple(left)


def _shapes(model: nn.Module) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Each module by name with what a fold changes of it: its class, and the names that it holds itself."""
    for name, module in model.named_modules():
        yield name, (type(module), *module._modules, *module._parameters, *module._buffers)
