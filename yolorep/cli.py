"""The `yolorep` command. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolorep.commands.list_options import ListCommand, Precision
from yolorep.errors import HostError, UsageError, YolorepError, first_line

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Structural re-parameterization for YOLO: train with many branches, ship a plain YOLO.",
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Repo = Annotated[
    Path | None, typer.Option(help="A YOLOv5 tree; by default the working directory, then the yolov5 package.")
]

Source = Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint (.pt) of ultralytics or YOLOv5.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")]
Half = Annotated[bool, typer.Option("--half", help="Store float16 instead of float32.")]
BenchOut = Annotated[Path, typer.Option(help="Folder for bench.json and bench.png, which are replaced.", metavar="DIR")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]


@app.command(context_settings=PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train with ultralytics: ARG=VALUE as for its own command. rep=BLOCK expands the model first."""
    _ultralytics("train", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def val(context: typer.Context) -> None:
    """Validate with ultralytics: ARG=VALUE. A rep checkpoint is re-parameterized by itself."""
    _ultralytics("val", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def predict(context: typer.Context) -> None:
    """Detect with ultralytics: ARG=VALUE. A rep checkpoint is re-parameterized by itself."""
    _ultralytics("predict", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Export with ultralytics: ARG=VALUE. A rep checkpoint is re-parameterized by itself."""
    _ultralytics("export", context.args)


@app.command(context_settings={**PASS_ON, "allow_interspersed_args": False})  # after SCRIPT, all is the script's
def yolov5(context: typer.Context, script: str, repo: Repo = None) -> None:
    """Run an unmodified script of a YOLOv5 tree (train.py, val.py, detect.py, export.py) that knows rep models."""
    from yolorep.hosts.yolov5.launcher import run_script

    run_script(script, context.args, repo)


@app.command()
def patch(
    directory: Annotated[Path, typer.Argument(help="A YOLOv5 tree.", metavar="DIR")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether the tree is patched.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Take the patch out again.")] = False,
) -> None:
    """Add the one line to a YOLOv5 tree that makes its own scripts know rep models."""
    from yolorep.hosts.yolov5 import patch

    typer.echo(patch.run(directory, check=check, revert=revert))


@app.command()
def expand(
    source: Source,
    out: Out,
    block: Annotated[str, typer.Option(help="Which branches to add; `yolorep blocks` lists them.")] = "repvgg",
    identity: Annotated[str, typer.Option(help="How the input reaches the output where shapes differ.")] = "auto",
    select: Annotated[list[str] | None, typer.Option(help="Layer index or name pattern; may be repeated.")] = None,
    half: Half = False,
    overwrite: Overwrite = False,
    repo: Repo = None,
) -> None:
    """Give a stock checkpoint extra branches: it computes the same, and is ready to fine-tune."""
    from yolorep.commands.convert import expand_file

    chosen = [int(s) if s.isdecimal() else s for s in select] if select else None
    expand_file(source, out, block, identity, chosen, half=half, overwrite=overwrite, repo=repo, console=_console())


@app.command()
def deploy(source: Source, out: Out, half: Half = False, overwrite: Overwrite = False, repo: Repo = None) -> None:
    """Fold a trained rep checkpoint into a stock one, proven equal before it is written."""
    from yolorep.commands.convert import deploy_file

    deploy_file(source, out, half=half, overwrite=overwrite, repo=repo, console=_console())


@app.command()
def quantize(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="NAME.onnx, or a folder NAME_openvino_model.")],
    data: Annotated[Path, typer.Option(help="data.yaml: calibrate on its train images, validate on its val images.")],
    imgsz: Annotated[int | None, typer.Option(help="Pixels, by default 640.", min=32)] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="Scheme to try, or all; may be repeated.")] = None,
    images: Annotated[int, typer.Option(help="Calibration images.", min=1)] = 300,
    max_drop: Annotated[float, typer.Option(help="Tolerated loss of mAP50-95 in points.")] = 0.5,
    overwrite: Overwrite = False,
    repo: Repo = None,
) -> None:
    """Quantize a checkpoint to 8 bits and measure the loss; exit code 1 when it is more than is tolerated."""
    from yolorep.commands.quantize import Request, quantize_file

    request = Request(source, out, data, imgsz, tuple(scheme or ()), images, max_drop, overwrite, repo)
    if not quantize_file(request, _console()):
        raise typer.Exit(1)


@app.command()
def import_weights(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A state dict of RepVGG's authors or of timm.")],
    yaml: Annotated[str, typer.Argument(metavar="YAML", help="The network, such as repvgg-a0.yaml.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write a classifier's checkpoint with the RepVGG weights of its authors or of timm."""
    from yolorep.commands.import_weights import import_file

    import_file(source, yaml, out, overwrite=overwrite, console=_console())


@app.command()
def split(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder with a folder of images for each class.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder: OUT/train and OUT/val.")],
    val: Annotated[float, typer.Option(help="Share of each class to validate with.", min=0, max=1)] = 0.2,
    seed: Annotated[int, typer.Option(help="Another number gives another split.")] = 0,
    link: Annotated[bool, typer.Option("--link", help="Symbolic links instead of copies.")] = False,
) -> None:
    """Split images of a classifier into train and val, the same share of each class."""
    from yolorep.commands.split import split_folder

    for name, counts in split_folder(source, out, val=val, seed=seed, link=link).items():
        typer.echo(f"{name}: {counts.train} train, {counts.val} val")


@app.command()
def verify(
    before: Annotated[Path, typer.Argument(metavar="A")],
    after: Annotated[Path, typer.Argument(metavar="B")],
    images: Annotated[Path | None, typer.Option(help="Image or folder: compare what is found on it.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="data.yaml, or a classifier's folder: compare the host's figures.")
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option(help="Pixels, for --images and --data: 640, a classifier: 224.", min=32)
    ] = None,
    repo: Repo = None,
) -> None:
    """Compare two checkpoints block by block and end to end; exit code 1 when they differ."""
    from yolorep.commands.convert import verify_files

    if not verify_files(before, after, images=images, data=data, imgsz=imgsz, repo=repo, console=_console()):
        raise typer.Exit(1)


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
    out: BenchOut = Path("yolorep-bench"),
    repo: Repo = None,
) -> None:
    """Time models and blocks with their branches, deployed, and against stock, interleaved."""
    from yolorep.bench.measure import Settings, best_device
    from yolorep.commands.bench import run

    layouts = ("contiguous", "channels_last") if channels_last else ("contiguous",)
    precisions = tuple(p.value for p in precision)
    settings = Settings(tuple(batch), (), precisions, layouts, device or best_device(), rounds, threads)
    stem, others = out / "bench", beside or ()
    run(what, settings, stem, sizes=imgsz, channels=channels, others=others, repo=repo, console=_console())


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; by default yolorep-demo.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs to train.", min=1)] = 9,
    images: Annotated[int, typer.Option(help="Training images to paint.", min=16)] = 800,
) -> None:
    """Train, detect, deploy, verify and measure on images painted for it; about two minutes on two cores."""
    from yolorep.demo import demo as play

    play(out, epochs=epochs, images=images, console=_console())


@app.command()
def blocks() -> None:
    """List the blocks, and the kinds of identity branch."""
    from yolorep.blocks import BLOCKS, IDENTITIES

    for name, block in sorted(BLOCKS.items()):
        typer.echo(f"{name:12} {(block.declare.__doc__ or '').splitlines()[0]}")
        if block.options:
            typer.echo(f"{'':12} options: {', '.join(f'{key}={value!r}' for key, value in block.options.items())}")
    typer.echo(f"identity: {', '.join(IDENTITIES)}")


def main() -> None:
    """Run the command; an error that yolorep raises on purpose is one sentence and exit code 2."""
    try:
        app()
    except YolorepError as error:
        typer.secho(f"yolorep: {error}", fg="red", err=True)
        sys.exit(2)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _ultralytics(mode: str, arguments: list[str]) -> None:
    from yolorep.hosts.offline import go_offline
    from yolorep.hosts.train_options import from_pairs
    from yolorep.hosts.truncated_files import check_whole
    from yolorep.hosts.ultralytics.training_hooks import options_of_command

    go_offline()
    for argument in arguments:
        check_whole(Path(argument.partition("=")[2]))  # model= or resume=
    theirs, ours = from_pairs(arguments)
    if ours and mode != "train":
        raise UsageError(f"{next(iter(ours))}= is an option of train; {mode} takes a rep checkpoint as it is")
    from ultralytics.cfg import entrypoint

    sys.argv[:] = ["yolo", mode, *theirs]  # in place: ultralytics may hold the list already
    try:
        with options_of_command(ours):
            entrypoint()
    except (FileNotFoundError, SyntaxError) as error:  # what it raises for a missing file and for a wrong argument
        raise HostError(first_line(error)) from None
    except RuntimeError as error:
        if not str(error).startswith("Dataset"):
            raise
        raise HostError(first_line(error)) from None
