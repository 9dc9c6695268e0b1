"""The `yolorep` command. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolorep._version import __version__
from yolorep.commands.list_options import Command, ListCommand, Precision
from yolorep.errors import YolorepError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Structural re-parameterization for YOLO: train with many branches, ship a plain YOLO.",
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
HELP = {"-h", "--help"}
TRAIN_HELP = """\
yolorep's own arguments of train, beside those of ultralytics:

  rep=BLOCK            expand the model with this block before training; `yolorep blocks` lists them
  identity=KIND        how the input reaches the output where shapes differ, such as auto, conv or none
  select=LAYERS        only these layers: an index, a name pattern, or a list of them: select='["*.cv2", 6]'
  equivalent_l2=true   decay the folded kernels of RepVGG blocks instead of each branch's
"""
YOLOV5_HELP = """\
yolorep's own options of train.py and segment/train.py, beside those of the script:

  --rep BLOCK          expand the model with this block before training; `yolorep blocks` lists them
  --identity KIND      how the input reaches the output where shapes differ, such as auto, conv or none
  --select LAYERS      only these layers: an index, a name pattern, or a list of them: --select '["*.cv2", 6]'
  --equivalent-l2      decay the folded kernels of RepVGG blocks instead of each branch's
"""
Repo = Annotated[
    Path | None, typer.Option(help="A YOLOv5 tree; by default the working directory, then the yolov5 package.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Download and install nothing, as with YOLO_OFFLINE=1 in the environment.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Read checkpoints that name other code than layers; it runs when they are read.")
]
Source = Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint (.pt) of ultralytics or YOLOv5.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")]
Half = Annotated[bool, typer.Option("--half", help="Store float16, whatever the input is stored in.")]
Float32 = Annotated[bool, typer.Option("--float32", help="Store float32, whatever the input is stored in.")]
BenchOut = Annotated[Path, typer.Option(help="Folder for bench.json and bench.png, which are replaced.", metavar="DIR")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]


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


@app.command(cls=Command, context_settings=PASS_ON)
def train(context: typer.Context, offline: Offline = False) -> None:
    """Train with ultralytics: ARG=VALUE as for its own command. rep=BLOCK expands the model first."""
    _ultralytics("train", context, offline)


@app.command(cls=Command, context_settings=PASS_ON)
def val(context: typer.Context, offline: Offline = False) -> None:
    """Validate with ultralytics: ARG=VALUE. The blocks of a rep checkpoint are folded first."""
    _ultralytics("val", context, offline)


@app.command(cls=Command, context_settings=PASS_ON)
def predict(context: typer.Context, offline: Offline = False) -> None:
    """Detect with ultralytics: ARG=VALUE. The blocks of a rep checkpoint are folded first."""
    _ultralytics("predict", context, offline)


@app.command(cls=Command, context_settings=PASS_ON)
def export(context: typer.Context, offline: Offline = False) -> None:
    """Export with ultralytics: ARG=VALUE. The blocks of a rep checkpoint are folded first."""
    _ultralytics("export", context, offline)


@app.command(cls=Command, context_settings=PASS_ON)
def track(context: typer.Context, offline: Offline = False) -> None:
    """Track with ultralytics: ARG=VALUE. The blocks of a rep checkpoint are folded first."""
    _ultralytics("track", context, offline)


@app.command(cls=Command, context_settings=PASS_ON)
def tune(context: typer.Context, offline: Offline = False) -> None:
    """Tune hyperparameters with ultralytics: ARG=VALUE. The model is a rep checkpoint or a YAML with rep:."""
    _ultralytics("tune", context, offline)


@app.command(cls=Command, context_settings=PASS_ON)
def benchmark(context: typer.Context, offline: Offline = False) -> None:
    """Benchmark ultralytics' export formats: ARG=VALUE. The blocks of a rep checkpoint are folded first."""
    _ultralytics("benchmark", context, offline)


@app.command(
    cls=Command,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def yolov5(
    context: typer.Context,
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="Such as train.py or segment/val.py.")],
    repo: Repo = None,
    offline: Offline = False,
) -> None:
    """Run an unmodified script of a YOLOv5 tree (train.py, val.py, detect.py, export.py) that knows rep models.

    After SCRIPT, all options are the script's.
    """
    from yolorep.hosts.yolov5.launcher import run_script

    _set_offline(offline)
    if HELP & set(context.args):
        typer.echo(YOLOV5_HELP)
    run_script(script, context.args, repo)


@app.command(cls=Command)
def patch(
    directory: Annotated[Path, typer.Argument(help="A YOLOv5 tree.", metavar="DIR")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether the tree is patched.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Take the patch out again.")] = False,
) -> None:
    """Add the one line to a YOLOv5 tree that makes its own scripts know rep models."""
    from yolorep.hosts.yolov5 import patch

    typer.echo(patch.run(directory, check=check, revert=revert))


@app.command(cls=Command)
def expand(
    source: Source,
    out: Out,
    block: Annotated[str, typer.Option(help="Which branches to add; `yolorep blocks` lists them.")] = "repvgg",
    identity: Annotated[str, typer.Option(help="How the input reaches the output where shapes differ.")] = "auto",
    select: Annotated[list[str] | None, typer.Option(help="Layer index or name pattern; may be repeated.")] = None,
    half: Half = False,
    float32: Float32 = False,
    overwrite: Overwrite = False,
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Give a stock checkpoint extra branches: it computes the same, and is ready to fine-tune."""
    from yolorep.commands.expand import expand_file
    from yolorep.commands.proven_write import Storage

    chosen = [int(s) if s.isdecimal() else s for s in select] if select else None
    with _reading(trust):
        storage = Storage.of_options(half=half, float32=float32)
        request = (source, out, block, identity, chosen)
        expand_file(*request, storage=storage, overwrite=overwrite, repo=repo, console=_console())


@app.command(cls=Command)
def deploy(
    source: Source,
    out: Out,
    half: Half = False,
    float32: Float32 = False,
    overwrite: Overwrite = False,
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Fold a trained rep checkpoint into a stock one, proven equal before it is written."""
    from yolorep.commands.deploy import deploy_file
    from yolorep.commands.proven_write import Storage

    with _reading(trust):
        storage = Storage.of_options(half=half, float32=float32)
        deploy_file(source, out, storage=storage, overwrite=overwrite, repo=repo, console=_console())


@app.command(cls=Command)
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
    trust: Trust = False,
) -> None:
    """Quantize a checkpoint to 8 bits and measure the loss; exit code 1 when it is more than is tolerated."""
    from yolorep.commands.quantize import Request, quantize_file

    request = Request(source, out, data, imgsz, tuple(scheme or ()), images, max_drop, overwrite, repo)
    with _reading(trust):
        within = quantize_file(request, _console())
    if not within:
        raise typer.Exit(1)


@app.command(cls=Command)
def import_weights(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A state dict of RepVGG's authors or of timm.")],
    yaml: Annotated[str, typer.Argument(metavar="YAML", help="The network, such as repvgg-a0.yaml.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write a classifier's checkpoint with the RepVGG weights of its authors or of timm."""
    from yolorep.commands.import_weights import import_file

    import_file(source, yaml, out, overwrite=overwrite, console=_console())


@app.command(cls=Command)
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


@app.command(cls=Command)
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
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Compare two checkpoints block by block and end to end; exit code 1 when they differ."""
    from yolorep.commands.verify import verify_files

    with _reading(trust):
        same = verify_files(before, after, images=images, data=data, imgsz=imgsz, repo=repo, console=_console())
    if not same:
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
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Time models and blocks with their branches, deployed, and against stock, interleaved."""
    from yolorep.bench.measure import Settings, best_device
    from yolorep.commands.bench import run

    layouts = ("contiguous", "channels_last") if channels_last else ("contiguous",)
    precisions = tuple(p.value for p in precision)
    settings = Settings(tuple(batch), (), precisions, layouts, device or best_device(), rounds, threads)
    stem, others = out / "bench", beside or ()
    with _reading(trust):
        run(what, settings, stem, sizes=imgsz, channels=channels, others=others, repo=repo, console=_console())


@app.command(cls=Command)
def demo(
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; by default yolorep-demo.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training; default: what fits.", min=1)] = None,
    images: Annotated[int | None, typer.Option(help="Training images; default: what fits.", min=16)] = None,
    minutes: Annotated[float, typer.Option(help="Time that epochs and images are fitted to.", min=0.5)] = 3.5,
) -> None:
    """Train rep beside stock on painted images, deploy, verify and measure; says first how long it takes."""
    from yolorep.demo import demo as play

    play(out, epochs=epochs, images=images, minutes=minutes, console=_console())


@app.command(cls=Command)
def blocks() -> None:
    """List the blocks, and the kinds of identity branch."""
    from yolorep.blocks import BLOCKS, IDENTITIES

    for name, block in sorted(BLOCKS.items()):
        typer.echo(f"{name:12} {(block.declare.__doc__ or '').splitlines()[0]}")
        if block.options:
            typer.echo(f"{'':12} options: {', '.join(f'{key}={value!r}' for key, value in block.options.items())}")
    typer.echo(f"identity: {', '.join(IDENTITIES)}")


@app.command(cls=Command)
def models() -> None:
    """List the model YAMLs that yolorep ships; each may be named without its folder."""
    from yolorep.hosts.shipped import shipped

    for name, path in sorted(shipped().items()):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())


def main() -> None:
    """Run the command; an error that yolorep raises on purpose is one sentence and exit code 2.

    So is what the system says of a file: a disk that is full, a folder that may not be entered.
    """
    try:
        app()
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


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False)  # a path may look like markup


def _reading(trust: bool) -> AbstractContextManager[None]:
    from yolorep.hosts.restricted_pickle import trusting

    return trusting(trust)


def _set_offline(offline: bool) -> None:
    if offline:
        os.environ["YOLO_OFFLINE"] = "true"


def _ultralytics(mode: str, context: typer.Context, offline: bool) -> None:
    from yolorep.hosts.ultralytics import command

    _set_offline(offline)
    if HELP & set(context.args):
        typer.echo(context.get_help())
        typer.echo(f"\n{TRAIN_HELP if mode == 'train' else ''}")
        command.print_help()
    else:
        command.run(mode, context.args)
