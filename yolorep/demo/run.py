"""The demo from end to end: paint, train, deploy, verify, compare, time, show."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from yolorep.bench import Result, Settings, bench, of_model
from yolorep.bench.subjects import DEPLOYED, STOCK, UNFUSED
from yolorep.demo import pictures, scenes, training
from yolorep.deployment import deploy
from yolorep.errors import UsageError, VerifyError
from yolorep.hosts import checkpoints
from yolorep.hosts.evaluate import compare_images, evaluator, figures, image_files, same_figure
from yolorep.hosts.predictions import ResultReport
from yolorep.verification import Report, verify

SIDE = 160  # pixels
DEFAULT = Path("yolorep-demo")
REP, DEPLOYED_FILE = "shapes-rep.pt", "shapes-deployed.pt"


@dataclass(frozen=True)
class Findings:
    """What the demo shows. before, after: mAP50 and mAP50-95 with the branches and deployed."""

    report: Report
    boxes: ResultReport
    before: dict[str, float]
    after: dict[str, float]
    speed: Result

    @property
    def ok(self) -> bool:
        same = (same_figure(value, self.after[name]) for name, value in self.before.items())
        return self.report.ok and self.boxes.ok and all(same)


def demo(out: Path | None, *, epochs: int, images: int, console: Console) -> None:
    """Run the demo and leave everything below `out`, by default `yolorep-demo`, numbered if that is taken.

    images: number of training images; an eighth of it is painted for validation.

    Raises:
        UsageError: `out` is there and not empty.
        VerifyError: the deployed model does not do the same; the files stay.
    """
    out = claim(out)
    console.file = console.file  # the stream that it has now, whatever standard output becomes meanwhile
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    try:
        with progress:
            findings = _play(out, epochs, images, progress)
    except KeyboardInterrupt:
        shutil.rmtree(out)
        console.print(f"interrupted; {out} is removed again")
        raise
    console.print(_table(findings))
    console.print(_guide(out), highlight=False, soft_wrap=True)
    if not findings.ok:
        raise VerifyError(f"the deployed model differs from the trained one; both are in {out}")


def claim(out: Path | None) -> Path:
    """The folder to write to, made if need be."""
    if out is None:
        out = next(path for path in _numbered(DEFAULT) if not path.exists())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; accepted for --out: a new or an empty one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made: {error.strerror}") from None
    return out


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _play(out: Path, epochs: int, images: int, progress: Progress) -> Findings:
    task = progress.add_task(f"painting {images} images", total=None)
    data = scenes.make(out / "data", train=images, val=max(images // 8, 4), side=SIDE)
    progress.update(task, total=1, completed=1)
    log, settings = out / "train.log", out / ".settings"
    with training.kept(log):
        training.prepare(settings)
        trained = _train(data, out, epochs, progress)
        shutil.copy2(trained.checkpoint, out / REP)
        task = progress.add_task("deploying and comparing", total=4)
        findings = _compare(out, data, lambda: progress.advance(task))
    shutil.rmtree(settings, ignore_errors=True)
    pictures.summary(trained.epochs, findings.speed, out / "summary.png")
    progress.advance(task)
    return findings


def _train(data: Path, out: Path, epochs: int, progress: Progress) -> training.Trained:
    task = progress.add_task("training", total=None)
    return training.train(
        data,
        out / "train",
        epochs=epochs,
        imgsz=SIDE,
        begin=lambda steps: progress.update(task, total=steps),
        step=lambda: progress.advance(task),
        epoch=lambda figures: progress.update(task, description=f"training: mAP50 {figures.map50:.2f}"),
    )


def _compare(out: Path, data: Path, advance: Callable[[], object]) -> Findings:
    rep, stock = out / REP, out / DEPLOYED_FILE
    checkpoint = checkpoints.load(rep)
    checkpoints.save(checkpoint, deploy(checkpoint.model), stock)
    report = verify(checkpoint.model, checkpoints.load(stock).model)
    advance()
    images = out / "data" / "images" / "val"
    evaluators = evaluator(rep, imgsz=SIDE), evaluator(stock, imgsz=SIDE)
    boxes = compare_images(*evaluators, images)
    pictures.mosaic(image_files(images), evaluators[1].answer, out / "detections.png")
    advance()
    before, after = (figures(one, data) for one in evaluators)
    (speed,) = bench(of_model(rep.stem, checkpoint.model), Settings(sizes=(SIDE,), rounds=20))
    advance()
    return Findings(report, boxes, before, after, speed)


def _table(found: Findings) -> Table:
    table = Table("", title="trained with its branches, shipped without", title_justify="left")
    for column in ("with branches", DEPLOYED, "difference"):
        table.add_column(column, justify="right")
    for name, value in found.before.items():
        table.add_row(name, f"{value:.4f}", f"{found.after[name]:.4f}", f"{found.after[name] - value:+.1e}")
    fps = {form: 1 / found.speed.timing.time(form).median for form in found.speed.timing.seconds}
    gain = found.speed.timing.ratio(UNFUSED, DEPLOYED).median
    table.add_row("images a second", f"{fps[UNFUSED]:.0f}", f"{fps[DEPLOYED]:.0f}", f"{gain:.2f} times as fast")
    table.add_row("the stock model's", "", f"{fps[STOCK]:.0f}", end_section=True)
    table.add_row("outputs, float32", "", "", f"{found.report.max_rel:.1e} relative")
    table.add_row("boxes", str(found.boxes.found), "", f"{found.boxes.differing} differ")
    return table


def _guide(out: Path) -> str:
    """What lies where."""
    what = {
        REP: "the trained checkpoint, with its branches",
        DEPLOYED_FILE: "the same as stock YOLOv5n; ultralytics loads it without yolorep",
        "detections.png": "what it detects, and the truth",
        "summary.png": "training and speed",
        "train.log": "what ultralytics had to say",
    }
    return "\n".join(f"{out / name}: {text}" for name, text in what.items())
