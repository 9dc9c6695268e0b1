"""Options that take several values after one name, `--batch 1 8`, as the hosts' scripts do, and help of arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any, get_type_hints

from typer.core import TyperCommand


class Precision(str, Enum):
    """Number formats to time in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    half = "half"


LISTS: dict[str, Callable[[str], bool]] = {
    "--batch": str.isdigit,
    "--imgsz": str.isdigit,
    "--precision": Precision.__members__.__contains__,
}


class Command(TyperCommand):
    """A command that shows the help of its arguments, which typer before 0.26 loses with click 8.5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.callback is None:
            return
        hints = get_type_hints(inspect.unwrap(self.callback), include_extras=True)
        for param in self.params:
            declared = getattr(hints.get(str(param.name)), "__metadata__", ())
            if declared and not getattr(param, "help", None):
                param.help = getattr(declared[0], "help", None)  # type: ignore[attr-defined]


class ListCommand(Command):
    """A command whose list options may be written `--batch 1 8`, besides `--batch 1 --batch 8`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(args: list[str]) -> list[str]:
    """Repeat a list option's name before each further value in `args`; the first other word ends the list."""
    result: list[str] = []
    option = None
    for index, word in enumerate(args):
        if word in LISTS:
            option = word
        elif option is not None and args[index - 1] != option:
            option = option if LISTS[option](word) else None
            result += [option] if option else []
        result.append(word)
    return result
