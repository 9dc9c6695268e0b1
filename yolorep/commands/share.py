"""`yolorep deploy --share`: choose the share of the frozen paths of blocks `twin` on a validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from yolorep.deployment import deployed
from yolorep.errors import UsageError
from yolorep.hosts import checkpoints, evaluate
from yolorep.hosts.checkpoints import Checkpoint
from yolorep.model_copy import copied
from yolorep.sharing import check_share, weigh_twins_

TRAINED = 0.5  # the share of a model as it was trained
JUDGED = ("mask mAP50-95", "pose mAP50-95", "mAP50-95", "top-1")  # the first that the task has is judged


def chosen_share(
    source: Path,
    out: Path,
    shares: Sequence[float],
    data: Path | None,
    *,
    imgsz: int | None = None,
    overwrite: bool = False,
    repo: Path | None = None,
    console: Console,
) -> float | None:
    """Return the share to deploy with: the one that is given, the best of several, or None for none.

    Of several, the model is deployed with each, and validated by its host; a table is printed.

    Raises:
        UsageError: several shares without a data set, or a data set or size with less than two.
        CheckpointError, HostError, BlockError, VerifyError: the input cannot be read, weighed or validated.
    """
    given = list(dict.fromkeys(shares))
    for share in given:
        check_share(share)
    if len(given) < 2:
        option = "--data" if data is not None else "--imgsz" if imgsz is not None else ""
        if option:
            raise UsageError(f"{option} is for choosing among several shares; accepted beside --share 0 0.25 0.5 0.75")
        return given[0] if given else None
    if data is None:
        raise UsageError("several shares are compared on a data set; accepted: --data DATA.yaml, or one share")
    checkpoints.check_target(source, out, overwrite=overwrite)
    evaluate.check_inputs(None, data)
    checkpoint = checkpoints.load(source, repo)
    with TemporaryDirectory() as folder:
        found = {
            share: _figures(checkpoint, share, Path(folder) / f"share-{index}.pt", data, imgsz, repo)
            for index, share in enumerate(given)
        }
    return _told(found, data, console)


def _figures(
    checkpoint: Checkpoint, share: float, file: Path, data: Path, imgsz: int | None, repo: Path | None
) -> dict[str, float]:
    """Return the host's figures of the model deployed with a share."""
    model = copied(checkpoint.model)
    weigh_twins_(model, share)
    checkpoints.save(checkpoint, deployed(model, inplace=True).model, file)
    return evaluate.figures(evaluate.evaluator(file, imgsz=imgsz, repo=repo), data)


def _told(found: Mapping[float, Mapping[str, float]], data: Path, console: Console) -> float:
    """Print the table; return the best share, of equally good ones the one nearest to the trained share."""
    names = list(next(iter(found.values())))
    judged = next((name for name in JUDGED if name in names), names[0])
    best = max(found, key=lambda share: (found[share][judged], -abs(share - TRAINED)))
    table = Table("share of the frozen path", *names)
    for share, figures in sorted(found.items()):
        mark = " (as trained)" if share == TRAINED else ""
        table.add_row(f"{share:g}{mark}", *(f"{figures[name]:.4f}" for name in names))
    console.print(table)
    console.print(
        f"{best:g} has the best {judged} of {len(found)} shares; it was chosen on the images of {data} that it was "
        "measured on, so that the figure is optimistic: judge it on other images",
        markup=False,
    )
    return best
