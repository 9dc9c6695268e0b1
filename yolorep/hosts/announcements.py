"""What yolorep says in the log of a host: which convolutions have branches, what was folded, how to deploy.

The host's own logger decides whether and where it is said: on the first of several processes alone, and at its level.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

from torch import nn

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.host import has_stock_class, unwrapped
from yolorep.stock_layers import rep_blocks
from yolorep.training.step_cost import step_cost

NAMES = 6  # names of layers in one line; of more, the first and the last are told


def logger_of(model: nn.Module) -> logging.Logger:
    """Return the logger of the module that defines a host's model class; yolorep's own for any other model."""
    for kind in type(unwrapped(model)).__mro__:
        if kind is nn.Module:
            break
        found = _logger_in(kind.__module__)
        if found is not None:
            return found
    return logging.getLogger("yolorep")


def logger_beside(function: Callable[..., Any]) -> logging.Logger:
    """Return the logger of the module that defines a host's function; yolorep's own if it has none."""
    return _logger_in(function.__module__) or logging.getLogger("yolorep")


def _logger_in(module: str) -> logging.Logger | None:
    names = ("LOGGER", "logger")  # the latter in YOLOv5 before v6.0
    found = (getattr(sys.modules.get(module), name, None) for name in names)
    return next((logger for logger in found if isinstance(logger, logging.Logger)), None)


def announce_training(model: nn.Module) -> None:
    """Log which convolutions have branches and what they cost; nothing for a model without."""
    for line in training_lines(unwrapped(model)):
        logger_of(model).info(line)


def training_lines(model: nn.Module) -> Iterator[str]:
    """Yield what to say of a model that is about to be trained."""
    names = rep_blocks(model)
    blocks = [model.get_submodule(name) for name in names]
    if not names:
        return
    convolutions = len(names) + sum(has_stock_class(module) for module in model.modules())
    kinds = Counter(str(block.block) for block in blocks)
    told = ", ".join(kinds if len(kinds) == 1 else (f"{count} {kind}" for kind, count in kinds.items()))
    yield f"yolorep: branches beside {len(names)} of {convolutions} convolutions ({told}): {_listed(names)}"
    added = sum(p.numel() for block in blocks for name, branch in block.branches() for p in branch.parameters())  # type: ignore[operator]
    total = sum(p.numel() for p in model.parameters())
    costs = [f"; {cost}" for cost in map(step_cost, kinds) if cost] if len(kinds) == 1 else []
    yield f"yolorep: the branches add {added:,} parameters to {total - added:,} in training{''.join(costs)}"


def announce_checkpoints(logger: logging.Logger, best: Path, last: Path, repo: Path | None = None) -> None:
    """Log where a trained rep model is and how to deploy it; nothing for files without rep blocks.

    repo: the YOLOv5 tree that the command needs to be told.
    """
    for line in deploy_lines(best, last, repo):
        logger.info(line)


def deploy_lines(best: Path, last: Path, repo: Path | None = None) -> Iterator[str]:
    """Yield the files of a run that has ended, and the command that deploys the best one."""
    files = [file for file in dict.fromkeys((best, last)) if holds_rep_blocks(file)]
    if not files:
        return
    out = files[0].with_name(f"{files[0].stem}-deployed.pt")
    option = f" --repo {shlex.quote(str(repo))}" if repo is not None else ""
    yield f"yolorep: the branches are in {' and '.join(_shown(file) for file in files)}; for a stock checkpoint, run"
    yield f"yolorep deploy {shlex.quote(_shown(files[0]))} {shlex.quote(_shown(out))}{option}"


def holds_rep_blocks(file: Path) -> bool:
    """Return whether a checkpoint, in torch's zip format, names the class of rep blocks; nothing in it is run."""
    if not file.is_file() or not is_zipfile(file):
        return False
    with ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return any(Conv_C3.__module__.encode() in archive.read(name) for name in pickles)


def folded_line(ours: int, theirs: int, error: float | None) -> str:
    """Return what to say of folded blocks. error: the largest relative one; None if it was not measured."""
    measured = "" if error is None else f", largest error {error:.0e}"
    foreign = f", {theirs} of them of other projects" if theirs else ""
    blocks = "block" if ours + theirs == 1 else "blocks"
    return f"yolorep: {ours + theirs} {blocks} re-parameterized{foreign}{measured}"


def masked_line(block: str, kernels: int) -> str:
    """Return what to say of a stock model whose optimizer has masks."""
    return f"yolorep: {block} steps the kernels of {kernels} convolutions by masks; every checkpoint is stock"


def late_line(epoch: int, epochs: int, blocks: int, added: int, rate: float) -> str:
    """Return what to say of a model that is expanded before this epoch, counted from 1. rate: of learning, at first."""
    what = f"{blocks} convolutions have branches now, with {added:,} new parameters" if blocks else "masks from now on"
    return f"yolorep: epoch {epoch} of {epochs}: {what}; the learning rate starts again, at {rate:g}"


def gains_line(gains: int, factor: float) -> str:
    """Return the line that tells the learning rate of the gains."""
    return f"yolorep: the gains of {gains} branches train at {factor:g} times the learning rate"


def _listed(names: list[str]) -> str:
    if len(names) <= NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: NAMES - 1])} ... {names[-1]}"


def _shown(path: Path) -> str:
    """Return the path from the working directory where it is below it."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
