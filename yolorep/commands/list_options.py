"""Options that take several values after one name, `--batch 1 8`, as the hosts' scripts do, and help of arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command


class Precision(str, Enum):
    """Number formats of a benchmark."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    half = "half"


# Kept here as plain strings so that `--help` imports no torch; a test compares them with the table of backends.
BACKEND_NAMES = (
    "all",
    "eager",
    "channels_last",
    "bfloat16",
    "half",
    "cuda-graph",
    "cuda-graph-half",
    "compile",
    "onnxruntime",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
    "ncnn",
    "tensorrt",
)

# option → whether a word is one of its values
LISTS: dict[str, Callable[[str], bool]] = {
    "--backends": BACKEND_NAMES.__contains__,
    "--batch": str.isdigit,
    "--imgsz": str.isdigit,
    "--share": lambda word: re.fullmatch(r"\d*\.?\d+|\d+\.", word) is not None,
    "--precision": Precision.__members__.__contains__,
}


class Command(TyperCommand):
    """A command that shows the help of its arguments, which typer before 0.26 loses with click 8.5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_plugin_option())
        if self.callback is None or all(getattr(param, "help", None) for param in self.params):
            return
        hints = get_type_hints(inspect.unwrap(self.callback), include_extras=True)
        for param in self.params:
            declared = getattr(hints.get(str(param.name)), "__metadata__", ())
            if declared and not getattr(param, "help", None):
                param.help = getattr(declared[0], "help", None)  # type: ignore[attr-defined]

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence, or its clauses that fit, where click would cut it in the middle of one."""
        first, more, _ = super().get_short_help_str(1000).partition(". ")
        if len(first) < limit:
            return f"{first}{more.strip()}"
        ends = [[match.start() for match in re.finditer(mark, first)] for mark in (r"[;:]| \(", ",")]
        fitting = [first[: max(end for end in kind if end <= limit)] for kind in ends if any(e <= limit for e in kind)]
        return next(iter(fitting), super().get_short_help_str(limit))

    def format_arguments(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: click 8.5 lists the arguments here, and typer lists them with the options."""


@cache
def _plugin_option() -> Any:
    """Return the option, the same one for all commands.

    typer makes it from a function: what the classes in `typer.core` take differs between versions.
    """

    def carrier(
        plugin: Annotated[
            list[str] | None,
            typer.Option(
                callback=_use_plugins,
                expose_value=False,
                is_eager=True,
                metavar="FILE.py",
                help="A Python file that registers blocks of your own; may be repeated.",
            ),
        ] = None,
    ) -> None:
        """Hold the option."""

    app = typer.Typer(add_completion=False)
    app.command()(carrier)
    return get_command(app).params[0]


def _use_plugins(value: list[str] | None) -> None:
    for file in value or ():
        from yolorep import plugins

        plugins.use(file)


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
