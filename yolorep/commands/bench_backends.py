"""`yolorep bench` of checkpoints: compare backends, print the table and which one to choose, write the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from yolorep.bench import backend_report
from yolorep.bench.backend_comparison import chosen, compare_backends
from yolorep.bench.backend_rows import Comparison
from yolorep.bench.measure import Settings
from yolorep.bench.record import check_folder
from yolorep.bench.subjects import DEPLOYED, TORCHVISION, Subjects, is_block, of_name
from yolorep.errors import UsageError
from yolorep.host import host_of


def run(
    whats: Sequence[str],
    settings: Settings,
    stem: Path,
    *,
    backends: Sequence[str] | None,
    images: Path | None = None,
    every_form: bool = False,
    sizes: Sequence[int] = (),
    repo: Path | None = None,
    console: Console,
) -> list[Comparison]:
    """Compare backends on every checkpoint or model YAML in `whats`, print tables and advice, and write the files.

    backends: their names, None for all. images: for the check of boxes and the calibration of 8 bits. every_form: run
    the unfused and the stock form in every backend.

    Raises:
        YolorepError: a name, a setting or the folder is not accepted, or the model cannot run at all.
    """
    check_folder(stem.parent)
    wanted = chosen(backends)
    for what in whats:
        if is_block(what) or what.startswith(TORCHVISION):
            raise UsageError(f"{what} has no boxes to check; accepted with --backends: checkpoints and model YAMLs")
    subjects = [replace(of_name(what, repo=repo), name=what) for what in whats]
    results: list[Comparison] = []
    for what, subject in zip(whats, subjects, strict=True):
        mine = replace(settings, sizes=tuple(sizes) or (subject.pixels,))
        weights = what if what.endswith(".pt") else None
        with _progress(console, settings.rounds) as watch:
            found = compare_backends(
                subject,
                mine,
                wanted,
                images=images,
                every_form=every_form,
                repo=repo,
                compares_boxes=weights is not None,
                watch=watch,
            )
        _tell(found, mine, weights, subject, console)
        results += found
    console.print("wrote", *map(str, backend_report.write(results, settings, stem)), soft_wrap=True)
    return results


def _tell(
    found: Sequence[Comparison], settings: Settings, weights: str | None, subject: Subjects, console: Console
) -> None:
    host = host_of(subject.forms[DEPLOYED]).name
    for one in found:
        console.print(backend_report.table(one, settings))
        for note in backend_report.notes(one, weights, host):
            console.print(note, highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console, rounds: int) -> Iterator[Callable[[str], Callable[[], object]]]:
    """Show one bar per run; yields what `compare_backends` calls with the name of each."""
    console.file = console.file  # pins the current stream: the output of converters is held back for a while
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=rounds)

        def watch(name: str) -> Callable[[], object]:
            progress.reset(task, description=escape(name))
            return lambda: progress.advance(task)

        yield watch
