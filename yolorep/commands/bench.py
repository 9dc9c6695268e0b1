"""The command: find what was named, time it with a progress bar, show the table, write the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from yolorep.bench.measure import LAYOUTS, Result, Settings, bench
from yolorep.bench.record import check_folder
from yolorep.bench.report import table, write
from yolorep.bench.subjects import Subjects, beside, is_block, of_name


def run(
    whats: Sequence[str],
    settings: Settings,
    stem: Path | None,
    *,
    sizes: Sequence[int] = (),
    channels: int = 64,
    others: Sequence[str] = (),
    repo: Path | None = None,
    console: Console,
    script: str = "yolorep bench",
) -> list[Result]:
    """Benchmark every name in `whats`, print the table and, with a `stem`, write `stem`.json and `stem`.png.

    others: names whose deployed form is timed beside each of them, in the same rounds.
    sizes: pixels; by default the usual ones of each. A block is timed in both memory formats.

    Raises:
        YolorepError: a name, a setting or the folder is not accepted; all is looked up first.
    """
    if stem is not None:
        check_folder(stem.parent)
    company = [of_name(other, channels=channels, repo=repo) for other in others]
    subjects = [(what, beside(of_name(what, channels=channels, repo=repo), company)) for what in whats]
    results: list[Result] = []
    for what, subject in subjects:
        mine = replace(settings, sizes=tuple(sizes) or (subject.pixels,))
        results += timed(subject, replace(mine, layouts=tuple(LAYOUTS)) if is_block(what) else mine, console)
    console.print(table(results, settings))
    if stem is not None:
        console.print("wrote", *map(str, write(results, settings, stem, script)))
    return results


def timed(subject: Subjects, settings: Settings, console: Console) -> list[Result]:
    """`bench` under a progress bar."""
    with Progress(console=console, transient=True) as progress:

        def watch(name: str) -> Callable[[], object]:
            task = progress.add_task(name, total=settings.rounds)
            return lambda: progress.advance(task)

        return bench(subject, settings, watch=watch)
