"""The `yolorep` command."""

from __future__ import annotations

import sys

import typer

from yolorep.hosts.offline import go_offline

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def _ultralytics(mode: str, arguments: list[str]) -> None:
    go_offline()
    from ultralytics.cfg import entrypoint

    sys.argv = ["yolo", mode, *arguments]
    entrypoint()


@app.command(context_settings=PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train with ultralytics: ARG=VALUE as for its own command, rep models and names included."""
    _ultralytics("train", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def val(context: typer.Context) -> None:
    """Validate with ultralytics."""
    _ultralytics("val", context.args)


def main() -> None:
    app()
