"""The commands from one checkpoint, or folder, to another: their arguments. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolorep.commands.list_options import Command, ListCommand
from yolorep.commands.options import Block, Float32, Half, Identity, Out, Overwrite, Repo, Select, Source, Start, Trust
from yolorep.console import rich_console


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(cls=Command)(expand)
    app.command(cls=ListCommand)(deploy)
    for command in (quantize, import_weights, split, verify):
        app.command(cls=Command)(command)


def expand(
    source: Source,
    out: Out,
    block: Block = "repvgg",
    identity: Identity = "auto",
    select: Select = None,
    start: Start = None,
    data: Annotated[Path | None, typer.Option(help="data.yaml: its training images, for --start split.")] = None,
    imgsz: Annotated[int, typer.Option(help="Pixels of those images.", min=32)] = 640,
    half: Half = False,
    float32: Float32 = False,
    overwrite: Overwrite = False,
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Give a stock checkpoint extra branches: it computes the same, and is ready to fine-tune."""
    from yolorep.commands.expand import Images, expand_file
    from yolorep.commands.proven_write import Storage
    from yolorep.hosts.restricted_pickle import trusting
    from yolorep.policy import Policy

    chosen = [int(s) if s.isdecimal() else s for s in select] if select else None
    with trusting(trust):
        storage = Storage.of_options(half=half, float32=float32)
        policy = Policy(block, identity, select=None if chosen is None else tuple(chosen), start=start)
        images = Images.of_options(policy, data, imgsz)
        expand_file(
            source, out, policy, images, storage=storage, overwrite=overwrite, repo=repo, console=rich_console()
        )


def deploy(
    source: Source,
    out: Out,
    share: Annotated[
        list[float] | None, typer.Option(help="Share of twin's frozen paths, 0 to 1; several are compared (--data).")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="data.yaml: choose among several shares on its val images.")] = None,
    imgsz: Annotated[int | None, typer.Option(help="Pixels of those images: 640, a classifier: 224.", min=32)] = None,
    half: Half = False,
    float32: Float32 = False,
    overwrite: Overwrite = False,
    trust: Trust = False,
    repo: Repo = None,
) -> None:
    """Fold a trained rep checkpoint into a stock one, proven equal before it is written."""
    from yolorep.commands.deploy import deploy_file
    from yolorep.commands.proven_write import Storage
    from yolorep.commands.share import chosen_share
    from yolorep.hosts.restricted_pickle import trusting

    with trusting(trust):
        storage, console = Storage.of_options(half=half, float32=float32), rich_console()
        one = chosen_share(source, out, share or (), data, imgsz=imgsz, overwrite=overwrite, repo=repo, console=console)
        deploy_file(source, out, storage=storage, overwrite=overwrite, share=one, repo=repo, console=console)


def quantize(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="NAME.onnx, or a folder NAME_openvino_model.")],
    data: Annotated[Path, typer.Option(help="data.yaml: calibrate on its train images, validate on its val images.")],
    imgsz: Annotated[int | None, typer.Option(help="Pixels, by default 640.", min=32)] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="Scheme to try, or all; may be repeated.")] = None,
    images: Annotated[int, typer.Option(help="Calibration images.", min=1)] = 300,
    max_drop: Annotated[float, typer.Option(help="Tolerated loss of mAP50-95 in points.")] = 0.5,
    finetune: Annotated[
        int, typer.Option(help="Epochs of fine-tuning with 8-bit rounding; what it gains is in the report.", min=0)
    ] = 0,
    overwrite: Overwrite = False,
    repo: Repo = None,
    trust: Trust = False,
) -> None:
    """Quantize a checkpoint to 8 bits and measure the loss; exit code 1 when it is more than is tolerated."""
    from yolorep.commands.quantize import Request, quantize_file
    from yolorep.hosts.restricted_pickle import trusting

    request = Request(source, out, data, imgsz, tuple(scheme or ()), images, max_drop, overwrite, repo, finetune)
    with trusting(trust):
        within = quantize_file(request, rich_console())
    if not within:
        raise typer.Exit(1)


def import_weights(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A state dict of RepVGG's authors or of timm.")],
    yaml: Annotated[str, typer.Argument(metavar="YAML", help="The network, such as repvgg-a0.yaml.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write a classifier's checkpoint of RepVGG weights: those of its authors or of timm."""
    from yolorep.commands.import_weights import import_file

    import_file(source, yaml, out, overwrite=overwrite, console=rich_console())


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


def verify(
    before: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint (.pt), such as the trained one.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="One to judge, such as the deployed one.")],
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
    from yolorep.hosts.restricted_pickle import trusting

    with trusting(trust):
        same = verify_files(before, after, images=images, data=data, imgsz=imgsz, repo=repo, console=rich_console())
    if not same:
        raise typer.Exit(1)
