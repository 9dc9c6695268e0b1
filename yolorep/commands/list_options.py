"""Options that take several values after one name, `--batch 1 8`, as the hosts' scripts do."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

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


class ListCommand(TyperCommand):
    """A command whose list options may be written `--batch 1 8` beside the usual `--batch 1 --batch 8`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(args: list[str]) -> list[str]:
    """`args` with a list option's name repeated before each further value; the first other word ends the list."""
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
