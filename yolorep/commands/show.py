"""`yolorep show`: the rep blocks of a model file or YAML as a table, JSON or a picture."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from torch import nn

from yolorep.bench.record import check_folder, replace_together
from yolorep.errors import UsageError
from yolorep.hosts import checkpoints
from yolorep.summary import Summary, show

YAMLS = (".yaml", ".yml")
SCREEN = "-"  # in place of a file's name


def show_model(
    what: str, *, to_json: str | None = None, png: Path | None = None, repo: Path | None = None, console: Console
) -> Summary:
    """Print the summary of a model; with `to_json` or `png`, write it too.

    what: a checkpoint by path, or a model YAML by path or by the name of one that yolorep or ultralytics ships.
    to_json: a file, or '-' for the screen, in place of the table. png: a picture of the convolutions before and after.
    repo: the YOLOv5 tree to read a checkpoint of YOLOv5 with.

    Raises:
        CheckpointError, HostError, BlockError, UsageError: the model cannot be read or built, or a file not written.
        FoldError: a rep block does not fold.
    """
    for file in (Path(to_json) if to_json not in (None, SCREEN) else None, png):
        if file is not None:
            check_folder(file.parent)
    summary = show(load(what, repo))
    text = json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n"
    if to_json == SCREEN:
        print(text, end="")
    else:
        console.print(summary)
    if to_json not in (None, SCREEN):
        replace_together({Path(str(to_json)): text})
        console.print(f"wrote {to_json}")
    if png is not None:
        from yolorep.commands.show_picture import draw

        replace_together({png: lambda file: draw(summary, Path(what).name, file)})
        if to_json != SCREEN:
            console.print(f"wrote {png}")
    return summary


def load(what: str, repo: Path | None = None) -> nn.Module:
    """Return the model of a checkpoint, or a fresh one of a YAML, in evaluation mode.

    Raises:
        CheckpointError, HostError, BlockError, UsageError: it cannot be read or built.
    """
    suffix = Path(what).suffix
    if suffix in YAMLS:
        from yolorep.hosts.ultralytics.build import build

        return build(what).eval()
    if suffix != ".pt":
        raise UsageError(
            f"{what!r} is neither a checkpoint (.pt) nor a model YAML (.yaml); `yolorep models` lists YAMLs"
        )
    return checkpoints.load(Path(what), repo).model
