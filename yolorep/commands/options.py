"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Block = Annotated[str, typer.Option(help="Which branches to add; `yolorep blocks` lists them.")]
Start = Annotated[
    str | None, typer.Option(help="silent: branches add nothing yet; split: they take parts of the kernels (--data).")
]
Identity = Annotated[str, typer.Option(help="How the input reaches the output where shapes differ.")]
Select = Annotated[list[str] | None, typer.Option(help="neck, 3x3, a layer index, a name pattern; may be repeated.")]
