"""Hosts that run a model as it is stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yolorep.hosts import attached


@contextmanager
def unfused() -> Iterator[None]:
    """The hosts' `fuse` does nothing meanwhile, so that rep blocks keep their branches and batch norms stay."""
    modules: list[Any] = [sys.modules.get(name) for name in attached()]
    bases: list[Any] = [getattr(module, "BaseModel", None) or getattr(module, "Model", None) for module in modules]
    bases = [base for base in bases if hasattr(base, "fuse")]
    originals = [base.fuse for base in bases]
    for base in bases:
        base.fuse = lambda model, *args, **kwargs: model
    try:
        yield
    finally:
        for base, fuse in zip(bases, originals, strict=True):
            base.fuse = fuse
