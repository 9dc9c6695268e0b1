"""Hooks for training on several devices with `ultralytics`: the processes that it starts have the hooks too."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import yolorep
from yolorep.errors import HostError
from yolorep.host import ULTRALYTICS
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.offline import is_guarded
from yolorep.hosts.shared_hooks import require
from yolorep.hosts.ultralytics import run_record
from yolorep.stock_layers import rep_blocks

TRAIN = "trainer.train()"
TRAINER = "ultralytics.engine.trainer"  # has a name of its own for the clean-up, if it is imported before yolorep


def attach(dist: ModuleType) -> Hooks:
    """Hook the imported module `ultralytics.utils.dist`.

    Raises:
        HostError: this version lacks a function that is hooked.
    """
    require(dist, "generate_ddp_file", "ddp_cleanup", supported=ULTRALYTICS.supported)
    hooks = Hooks()
    hooks.wrap(dist, "generate_ddp_file", _generate)
    hooks.wrap_copies(dist, "ddp_cleanup", _clean_up, [sys.modules.get(TRAINER)])
    return hooks


def _generate(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the host's script with the hooks installed first, so that it finds models by shipped names."""
    file = original(trainer, *args, **kwargs)
    script = Path(file)
    text = script.read_text(encoding="utf-8")
    try:
        if not _state(file).exists() and isinstance(trainer.model, nn.Module) and rep_blocks(trainer.model):
            text = _with_model(text, trainer.model, _state(file))
        script.write_text(_preamble() + text, encoding="utf-8")
    except BaseException:
        for left in (script, _state(file)):
            left.unlink(missing_ok=True)
        raise
    return file


def _preamble() -> str:
    folder = str(Path(yolorep.__file__).parents[1])  # the script is elsewhere, and does not see this working directory
    lines = ["import sys", f"sys.path.append({folder!r})", "import yolorep"]
    if run_record.given():
        lines += ["from yolorep.hosts.ultralytics.run_record import record_in_process"]
        lines += [f"record_in_process({dict(run_record.given())!r})"]
    if is_guarded():
        lines += ["from yolorep.hosts.offline import guard_hosts", "guard_hosts()"]
    return "\n".join(lines) + "\n"


def _with_model(script: str, model: nn.Module, state: Path) -> str:
    """Return the script of a host before 8.4, changed to load the expanded model instead of building a stock one."""
    before, found, after = script.partition(TRAIN)
    if not found:
        raise HostError(f"ultralytics' script for several devices has no {TRAIN}; supported: {ULTRALYTICS.supported}")
    torch.save(model, state)
    first, _, assigned = before.rpartition("\n    ")
    load = f"import torch\n    trainer.model = torch.load({str(state)!r}, weights_only=False)"
    return f"{first}\n    {load}\n    {assigned}{TRAIN}{after}"


def _clean_up(original: Any, trainer: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(trainer, file, *args, **kwargs)
    finally:
        _state(file).unlink(missing_ok=True)


def _state(file: Any) -> Path:
    """Return the path of the model for the processes: beside the script, as in the host since 8.4."""
    return Path(file).with_suffix(".pt")
