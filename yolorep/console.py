"""Print what yolorep has to say beside a host's own output."""

from __future__ import annotations

import functools
import sys


def say(text: str) -> None:
    """Print one line that begins with "yolorep:" to the standard error."""
    print(f"yolorep: {text}", file=sys.stderr, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """`say`, the first time in this process that this text is said."""
    say(text)
