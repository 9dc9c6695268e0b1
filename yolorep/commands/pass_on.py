"""The commands that pass their arguments on to a host, as a table: ultralytics' modes, and the scripts of YOLOv5 trees.

Their help begins with what yolorep adds; the host's own help follows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from yolorep.commands.list_options import Command
from yolorep.commands.options import Offline, Repo

HELP = {"-h", "--help"}
MODE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
SCRIPT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
FOLDED = "The blocks of a rep checkpoint are folded first."


@dataclass(frozen=True)
class PassOn:
    """A mode of ultralytics' command.

    example: arguments, for its help. trains: whether it takes `OPTIONS`.
    """

    mode: str
    summary: str
    example: str
    trains: bool = False


@dataclass(frozen=True)
class Added:
    """An option that yolorep adds to training. value: as help names it; empty for one that is true or false."""

    name: str
    value: str
    text: str


MODES = (
    PassOn(
        "train",
        "Train with ultralytics: ARG=VALUE as for its own command. rep=BLOCK expands the model first.",
        "model=yolo11n.pt rep=repvgg data=data.yaml epochs=100",
        trains=True,
    ),
    PassOn("val", f"Validate with ultralytics: ARG=VALUE. {FOLDED}", "model=best.pt data=data.yaml"),
    PassOn("predict", f"Detect with ultralytics: ARG=VALUE. {FOLDED}", "model=best.pt source=images"),
    PassOn("export", f"Export with ultralytics: ARG=VALUE. {FOLDED}", "model=best.pt format=onnx"),
    PassOn("track", f"Track with ultralytics: ARG=VALUE. {FOLDED}", "model=best.pt source=video.mp4"),
    PassOn(
        "tune",
        "Tune hyperparameters with ultralytics: ARG=VALUE. The model is a rep checkpoint or a YAML with rep:.",
        "model=yolov5n-rep.yaml data=data.yaml",
    ),
    PassOn("benchmark", f"Benchmark ultralytics' export formats: ARG=VALUE. {FOLDED}", "model=best.pt data=data.yaml"),
)
OPTIONS = (
    Added("plugin", "FILE.py", "a Python file that registers blocks of your own; every mode and script takes it"),
    Added("rep", "BLOCK", "expand the model with this block before training; `yolorep blocks` lists them"),
    Added("identity", "KIND", "how the input reaches the output where shapes differ, such as auto, conv or none"),
    Added(
        "select", "LAYERS", "only these layers: neck, 3x3 ..., an index, a name pattern, or a list of them: {select}"
    ),
    Added(
        "start", "START", "first values of the branches: silent, even or paper; by default silent on trained weights"
    ),
    Added("rep_from", "F", "expand the model after this fraction of the epochs, and start the learning rate again"),
    Added("scales", "FILE", "constants of csla and repopt: a checkpoint of csla(scales=learned), or YAML or JSON"),
    Added("equivalent_l2", "", "decay the folded kernels of RepVGG blocks instead of each branch's"),
    Added("gain_lr", "N", "multiply the learning rate of the branches' gains, which hardly move otherwise"),
)
LIST = "'[\"*.cv2\", 6]'"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for entry in MODES:
        app.command(entry.mode, cls=Command, context_settings=MODE, help=entry.summary)(_mode(entry))
    app.command(cls=Command, context_settings=SCRIPT)(yolov5)


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

    set_offline(offline)
    if HELP & set(context.args):
        typer.echo(help_of_script(script))
    run_script(script, context.args, repo)


def help_of_mode(entry: PassOn) -> str:
    """Return what yolorep adds to a mode of ultralytics' command."""
    added = [f"yolorep's own arguments of {entry.mode}, beside those of ultralytics:", "", *_options("{}={}")]
    added = [*added, ""] if entry.trains else []
    return "\n".join([f"Example: yolorep {entry.mode} {entry.example}", "", *added, "ultralytics' own help:"])


def help_of_script(script: str) -> str:
    """Return what yolorep adds to a script of a YOLOv5 tree: options of those that train, names of models for all."""
    known = "Weights may be rep checkpoints, and --cfg a YAML that yolorep ships (`yolorep models`)."
    added = [f"yolorep's own options of {script}, beside those of the script:", "", *_options("--{} {}"), ""]
    trains = script in ("train.py", "segment/train.py")
    return "\n".join([*(added if trains else []), known, "", f"{script}'s own help:"])


def _options(form: str) -> list[str]:
    flags = form.startswith("--")
    lines = []
    for option in OPTIONS:
        name = option.name.replace("_", "-") if flags else option.name
        written = form.format(name, option.value or ("" if flags else "true")).strip()
        lines.append(f"  {written:20} {option.text.format(select=f'--select {LIST}' if flags else f'select={LIST}')}")
    return lines


def _mode(entry: PassOn) -> Callable[..., None]:
    def run(context: typer.Context, offline: Offline = False) -> None:
        from yolorep.hosts.ultralytics import command

        set_offline(offline)
        if HELP & set(context.args):
            typer.echo(f"{context.get_help()}\n\n{help_of_mode(entry)}\n")
            command.print_help()
        else:
            command.run(entry.mode, context.args)

    return run


def set_offline(offline: bool) -> None:
    """Apply `--offline`."""
    if offline:
        os.environ["YOLO_OFFLINE"] = "true"
