"""Print what yolorep has to say beside a host's own output."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """Print one line that begins with "yolorep:" to the standard error."""
    print(f"yolorep: {text}", file=sys.stderr, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """Print a line as `say` does, once per process for each text."""
    say(text)


def rich_console() -> Console:
    """Return the screen of a command, on which brackets are text: a path may look like markup."""
    from rich.console import Console

    return Console(markup=False)
