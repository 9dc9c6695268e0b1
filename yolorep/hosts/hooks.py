"""Reversible replacement of functions in a host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

MARK = "__yolorep_original__"


class Hooks:
    """Functions that are replaced in one host; `remove` restores them. Replacing a function twice does nothing."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def __bool__(self) -> bool:
        """Return whether any function is replaced."""
        return bool(self._replaced)

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Replace the function `owner.name` by one that calls `around(original, *args, **kwargs)`."""
        original = getattr(owner, name)
        if hasattr(original, MARK):
            return

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        setattr(wrapper, MARK, original)
        self._replaced.append((owner, name, original))
        setattr(owner, name, wrapper)

    def wrap_copies(
        self, module: Any, name: str, around: Callable[..., Any], importers: Iterable[ModuleType | None]
    ) -> None:
        """Replace a function in `module`, and in each of `importers` that imported it by name."""
        function = getattr(module, name)
        for owner in (module, *importers):
            if getattr(owner, name, None) is function:
                self.wrap(owner, name, around)

    def remove(self) -> None:
        """Restore all original functions, in reverse order."""
        while self._replaced:
            owner, name, original = self._replaced.pop()
            setattr(owner, name, original)
