"""Who may run the `download:` of a data YAML, which is a URL, a shell command or a Python program."""

from __future__ import annotations

from typing import Any

from yolorep.console import say
from yolorep.hosts.network_setting import is_offline

SHOWN = 100  # characters
_training = False


def allow() -> None:
    """Let the hosts run a data YAML's `download:` in this process, as a command that trains does."""
    global _training
    _training = True


def may_run(data: Any, download: Any) -> bool:
    """Return whether the host may run the `download:` of a data YAML; print the reason where it may not."""
    if _training and not is_offline():
        return True
    why = "offline" if _training else "only training runs it"
    say(f"{data}: images are missing, and its download: ({_short(download)}) is not run: {why}")
    return False


def report(data: Any, download: Any, host: str) -> None:
    """Print what `host` is about to run."""
    say(f"{data}: images are missing; {host} now runs its download: ({_short(download)})")


def _short(download: Any) -> str:
    text = " ".join(str(download).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
