"""The `yolorep` command. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from yolorep._version import __version__
from yolorep.commands import files, pass_on
from yolorep.commands.list_options import BACKEND_NAMES, Command, ListCommand, Precision
from yolorep.commands.options import BenchOut, Offline, Repo, Trust
from yolorep.console import rich_console
from yolorep.errors import UsageError, YolorepError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Structural re-parameterization for YOLO: train with many branches, ship a plain YOLO.",
)
pass_on.register(app)
files.register(app)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"yolorep {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Structural re-parameterization for YOLO: train with many branches, ship a plain YOLO."""


@app.command(cls=Command)
def patch(
    directory: Annotated[Path, typer.Argument(help="A YOLOv5 tree.", metavar="DIR")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether the tree is patched.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Take the patch out again.")] = False,
) -> None:
    """Patch a YOLOv5 tree with one line: its own scripts then know rep models."""
    from yolorep.hosts.yolov5 import patch

    typer.echo(patch.run(directory, check=check, revert=revert))


@app.command(cls=Command)
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint (.pt), or a model YAML by name or path.")],
    json: Annotated[
        str | None, typer.Option(help="Write JSON; - prints it in place of the table.", metavar="FILE")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of the layers, before and after.")] = None,
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Show a model's rep blocks: what each branch contributes, what folding removes, and what is left alone."""
    from yolorep.commands.show import show_model
    from yolorep.hosts.restricted_pickle import trusting

    with trusting(trust):
        show_model(model, to_json=json, png=png, repo=repo, console=rich_console())


@app.command(cls=ListCommand)
def bench(
    what: Annotated[
        list[str], typer.Argument(metavar="WHAT...", help="YAMLs, checkpoints, blocks, torchvision:MODEL.")
    ],
    beside: Annotated[list[str] | None, typer.Option(help="WHAT to time deployed, in the same rounds.")] = None,
    batch: Annotated[list[int], typer.Option(help="Batch sizes: --batch 1 8.", min=1)] = [1],  # noqa: B006
    imgsz: Annotated[list[int], typer.Option(help="Pixels: 640, a classifier: 224, a block: 64.", min=1)] = [],  # noqa: B006
    precision: Annotated[list[Precision], typer.Option(help="Number formats.")] = [Precision.float32],  # noqa: B006
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Time models in channels_last too.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU if there is one.")] = None,
    rounds: Annotated[int, typer.Option(help="Samples of each form.", min=2)] = 20,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default what torch chooses.", min=1)] = None,
    channels: Annotated[int, typer.Option(help="Channels of a block, in and out.", min=1)] = 64,
    backends: Annotated[
        list[str] | None,
        typer.Option(help=f"Compare runtimes, as for a checkpoint alone: {', '.join(BACKEND_NAMES)}."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Image or folder that boxes are compared on and 8 bits are calibrated with.")
    ] = None,
    all_forms: Annotated[
        bool, typer.Option("--all-forms", help="Run unfused and stock in all backends, not only in PyTorch's.")
    ] = False,
    out: BenchOut = Path("yolorep-bench"),
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Time models and blocks with branches, deployed and stock, in turns; tell the best backend of a checkpoint."""
    from yolorep.bench.measure import Settings, best_device
    from yolorep.commands import bench as forms
    from yolorep.commands import bench_backends
    from yolorep.hosts.restricted_pickle import trusting

    stem = out / "bench"
    checkpoints = all(name.endswith(".pt") for name in what)
    if backends or (checkpoints and not beside and not channels_last and precision == [Precision.float32]):
        asked = Settings(tuple(batch), (), device=device or best_device(), rounds=rounds, threads=threads)
        names = None if not backends or "all" in backends else backends
        with trusting(trust):
            bench_backends.run(
                what,
                asked,
                stem,
                backends=names,
                images=images,
                every_form=all_forms,
                sizes=imgsz,
                repo=repo,
                console=rich_console(),
            )
        return
    _refuse_without_backends(images, all_forms)
    layouts = ("contiguous", "channels_last") if channels_last else ("contiguous",)
    precisions = tuple(p.value for p in precision)
    settings = Settings(tuple(batch), (), precisions, layouts, device or best_device(), rounds, threads)
    others, screen = beside or (), rich_console()
    with trusting(trust):
        forms.run(what, settings, stem, sizes=imgsz, channels=channels, others=others, repo=repo, console=screen)


def _refuse_without_backends(images: Path | None, all_forms: bool) -> None:
    for name, given in (("--images", images), ("--all-forms", all_forms)):
        if given:
            raise UsageError(f"{name} concerns the comparison of backends; accepted beside --backends")


@app.command(cls=Command, context_settings=pass_on.MODE)
def compare(context: typer.Context, offline: Offline = False) -> None:
    """Train stock and candidates on your data, in pairs, and say what the data can show: ARG=VALUE, as for train."""
    from yolorep.commands.compare_help import HELP

    if pass_on.HELP & set(context.args):
        typer.echo(HELP)
        return
    from yolorep.commands import compare as command

    pass_on.set_offline(offline)
    command.run(context.args, rich_console())


@app.command(cls=Command)
def demo(
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; by default yolorep-demo.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training; default: what fits.", min=1)] = None,
    images: Annotated[int | None, typer.Option(help="Training images; default: what fits.", min=16)] = None,
    minutes: Annotated[float, typer.Option(help="Time that epochs and images are fitted to.", min=0.5)] = 3.5,
) -> None:
    """Watch rep beside stock on painted images: train, deploy, verify, measure; says first how long it takes."""
    from yolorep.demo import demo as play

    play(out, epochs=epochs, images=images, minutes=minutes, console=rich_console())


@app.command(cls=Command)
def blocks() -> None:
    """List the blocks, and the kinds of identity branch."""
    from yolorep.commands.lists import block_lines

    typer.echo("\n".join(block_lines()))


@app.command(cls=Command)
def models() -> None:
    """List the model YAMLs that yolorep ships, each with its blocks and parameters; name one without its folder."""
    from yolorep.commands.lists import model_lines

    typer.echo("\n".join(model_lines()))


@cache
def click_command() -> Any:
    """Return the command with all that is below it, which typer makes from the functions."""
    return get_command(app)


def main() -> None:
    """Run the command; an error that yolorep raises on purpose is one sentence and exit code 2.

    Errors of the operating system about files, such as a full disk, are reported in the same way.
    """
    try:
        click_command()()
    except YolorepError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of a pipe has gone, as in `yolorep models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{name}{error.strerror or error}")


def _fail(text: str) -> None:
    typer.secho(f"yolorep: {text}", fg="red", err=True)
    sys.exit(2)
