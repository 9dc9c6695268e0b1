"""The demo from end to end: measure, paint, train rep and stock, deploy, verify, compare, time, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from yolorep.bench import Settings, bench, of_model
from yolorep.bench.subjects import DEPLOYED, STOCK, UNFUSED
from yolorep.demo import findings, pictures, report, scenes, training
from yolorep.demo.findings import Findings
from yolorep.demo.plan import Plan, fit, shorter
from yolorep.demo.workspace import Workspace
from yolorep.deployment import deploy
from yolorep.errors import UsageError, VerifyError
from yolorep.hosts import checkpoints
from yolorep.hosts.evaluate import compare_images, evaluator, figures, image_files
from yolorep.hosts.ultralytics.build import build
from yolorep.verification import verify

SIDE = 160  # pixels
MINUTES = 3.5
LONGEST = 24 * 60  # minutes
REP_FILE, DEPLOYED_FILE, STOCK_FILE = "shapes-rep.pt", "shapes-deployed.pt", "shapes-stock.pt"
FILES = {
    "report.html": "the results on one page, with pictures",
    REP_FILE: "the trained checkpoint with its branches",
    DEPLOYED_FILE: "the same as stock YOLOv5n; ultralytics loads it without yolorep",
    STOCK_FILE: "stock YOLOv5n, trained beside it",
    "detections.png": "detections on validation images, and the truth",
    "summary.png": "mAP over the epochs, and speed",
    "train.log": "ultralytics' output",
}
STORAGE_ERRORS = ("PytorchStreamWriter", "No space left")  # torch reports a full disk as a RuntimeError


def demo(
    out: Path | None,
    *,
    epochs: int | None = None,
    images: int | None = None,
    minutes: float = MINUTES,
    console: Console,
) -> None:
    """Run the demo and leave everything below `out`, by default `yolorep-demo`, numbered if that name is taken.

    epochs, images: of each training; by default as many as fit into `minutes` by the measured time of a step.

    Raises:
        UsageError: `out` is not a new or empty folder, or cannot be written to.
        VerifyError: the deployed model does not compute the same as the trained one; the files stay.
    """
    if not minutes <= LONGEST:
        raise UsageError(f"--minutes {minutes:g} is not accepted; accepted: 0.5 to {LONGEST}")
    space = Workspace.claim(out)
    console.file = console.file  # pins the current stream: standard output is redirected to the log later
    try:
        with _storage_errors(space.folder):
            found = _Demo(space, console, minutes).run(epochs, images)
            space.finish()
    except (KeyboardInterrupt, UsageError) as error:
        left = space.remove()
        if isinstance(error, KeyboardInterrupt):
            console.print(f"interrupted; what the demo made in {space.folder} is removed", markup=False)
        for path in left:
            console.print(f"{path} is not the demo's, and stays", markup=False)
        raise
    console.print(_table(found))
    console.print(found.verdict)
    for name, what in FILES.items():
        console.print(f"{space.folder / name}: {what}", highlight=False, soft_wrap=True, markup=False)
    if not found.ok:
        raise VerifyError(f"the deployed model differs from the trained one; both are in {space.folder}")


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written to, into one sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to: {error.strerror or error}") from None
    except RuntimeError as error:
        if not any(text in str(error) for text in STORAGE_ERRORS):
            raise
        raise UsageError(f"{folder} cannot be written to: torch cannot save a checkpoint there") from None


class _Demo:
    """One run of the demo in a claimed folder."""

    def __init__(self, space: Workspace, console: Console, minutes: float) -> None:
        self.space, self.console, self.minutes = space, console, minutes
        self.out, self.device = space.folder, training.best_device()
        self.start = perf_counter()

    def run(self, epochs: int | None, images: int | None) -> Findings:
        self.space.will_make([self.out / name for name in FILES])
        settings = Path(mkdtemp(prefix=".settings-", dir=self.out))
        self.space.trees.append(settings.name)
        with training.kept(self.out / "train.log"):
            training.prepare(settings)
            plan = self._plan(epochs, images)
            with self._progress() as progress:
                data = self._paint(plan, progress)
                stock = self._train(training.STOCK, data, plan, STOCK_FILE, progress)
                rep = self._train(training.REP, data, plan, REP_FILE, progress)
                found = self._compare(plan, rep, stock, data, progress)
        return found

    def _progress(self) -> Progress:
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()]
        return Progress(*columns, console=self.console, redirect_stdout=False, redirect_stderr=False)

    def _plan(self, epochs: int | None, images: int | None) -> Plan:
        """Say what rep does, measure a step of both models, and fit the training into the time."""
        rep, stock = build(training.REP), build(training.STOCK)
        blocks, convolutions = findings.counted(rep, stock)
        self.console.print(findings.what_rep_did(blocks, convolutions))
        sizes = f"They add {findings.parameters(rep) - findings.parameters(stock):,} parameters, in training only"
        threads = training.choose_threads() if self.device == "cpu" else 0
        where = f"the CPU with {threads} thread{'s' * (threads != 1)}" if threads else "the GPU"
        seconds = training.step_seconds((rep, stock), SIDE, self.device)
        left = 60 * self.minutes - (perf_counter() - self.start)
        plan = fit(sum(seconds), left, epochs=epochs, images=images)
        step = f"a training step on {where} takes {seconds[0]:.2f} s, {seconds[0] / seconds[1]:.2f} times stock's"
        self.console.print(f"{sizes}; {step}.")
        self.console.print(
            f"At this speed, {plan.amount} for rep and for stock, and everything else, "
            f"take about {_duration(plan.seconds)} from now."
        )
        quick = None if epochs or images else shorter(plan, sum(seconds), left)
        if quick is not None:
            self.console.print(
                "This machine is slow or busy, and fewer steps would learn nothing. To see only how it works, stop it "
                f"(Ctrl-C) and give --epochs {quick.epochs} --images {quick.images}: about {_duration(quick.seconds)}."
            )
        return plan

    def _paint(self, plan: Plan, progress: Progress) -> Path:
        task = progress.add_task(f"painting {plan.images + plan.val} images", total=None)
        folder = self.out / "data"
        caches = [folder / "labels" / f"{split}.cache" for split in ("train", "val")]
        self.space.will_make([*scenes.files(folder, train=plan.images, val=plan.val), *caches])
        data = scenes.make(folder, train=plan.images, val=plan.val, side=SIDE)
        progress.update(task, total=1, completed=1)
        return data

    def _train(self, model: str, data: Path, plan: Plan, name: str, progress: Progress) -> training.Trained:
        what = "rep" if model == training.REP else "stock"
        task = progress.add_task(f"training {what}", total=None)
        folder = self.out / f"train-{what}"
        self.space.will_make(training.files(folder))
        trained = training.train(
            model,
            data,
            folder,
            epochs=plan.epochs,
            imgsz=SIDE,
            device=self.device,
            begin=lambda steps: progress.update(task, total=steps),
            step=lambda: progress.advance(task),
            epoch=lambda e: progress.update(task, description=f"training {what}: mAP50 {e.map50:.2f}"),
        )
        shutil.copy2(trained.checkpoint, self.out / name)
        return trained

    def _compare(
        self, plan: Plan, rep: training.Trained, stock: training.Trained, data: Path, progress: Progress
    ) -> Findings:
        task = progress.add_task("deploying and comparing", total=4)
        advance: Callable[[], object] = lambda: progress.advance(task)  # noqa: E731
        checkpoint = checkpoints.load(self.out / REP_FILE)
        deployed = deploy(checkpoint.model)
        checkpoints.save(checkpoint, deployed, self.out / DEPLOYED_FILE)
        proof = verify(checkpoint.model, checkpoints.load(self.out / DEPLOYED_FILE).model)
        advance()
        images = self.out / "data" / "images" / "val"
        one, other = (evaluator(self.out / name, imgsz=SIDE) for name in (REP_FILE, DEPLOYED_FILE))
        boxes = compare_images(one, other, images)
        pictures.mosaic(image_files(images), other.answer, self.out / "detections.png")
        advance()
        before, after = (figures(it, data) for it in (one, other))
        advance()
        (speed,) = bench(of_model("yolov5n-rep", checkpoint.model), Settings(sizes=(SIDE,), device=_torch(self.device)))
        blocks, convolutions = findings.counted(checkpoint.model, deployed)
        sizes = {UNFUSED: findings.parameters(checkpoint.model), DEPLOYED: findings.parameters(deployed)}
        sizes[STOCK] = sizes[DEPLOYED]
        found = Findings(plan, rep, stock, blocks, convolutions, sizes, proof, boxes, before, after, speed)
        pictures.summary(found, self.out / "summary.png")
        (self.out / "report.html").write_text(report.page(found, _next(self.out)), encoding="utf-8")
        advance()
        return found


def _torch(device: str) -> str:
    return "cpu" if device == "cpu" else f"cuda:{device}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _next(out: Path) -> list[str]:
    """Return the commands that go on from here."""
    return [
        f"yolorep predict model={out / DEPLOYED_FILE} source=YOUR_IMAGES imgsz={SIDE}",
        f"yolorep verify {out / REP_FILE} {out / DEPLOYED_FILE} --data {out / 'data' / 'data.yaml'} --imgsz {SIDE}",
        "yolorep train model=yolov5s-rep.yaml data=YOUR_DATA.yaml epochs=100 imgsz=640",
    ]


def _table(found: Findings) -> Table:
    table = Table("", title="rep, deployed and stock", title_justify="left")
    for column in ("rep", DEPLOYED, STOCK):
        table.add_column(column, justify="right")
    for name, attribute in (("mAP50", "map50"), ("mAP50-95", "map50_95")):
        stock = f"{getattr(found.stock.best, attribute):.4f}"
        table.add_row(name, f"{found.before[name]:.4f}", f"{found.after[name]:.4f}", stock)
    fps = found.fps
    table.add_row("images per second", *(f"{fps[form]:.0f}" for form in (UNFUSED, DEPLOYED, STOCK)))
    sizes = found.parameters
    table.add_row("parameters", *(f"{sizes[form]:,}" for form in (UNFUSED, DEPLOYED, STOCK)))
    seconds = f"{found.rep.seconds:.0f}", "", f"{found.stock.seconds:.0f}"
    table.add_row("training, seconds", *seconds, end_section=True)
    table.add_row("outputs, float32", "", f"{found.report.max_rel:.1e} off", "")
    table.add_row("boxes", str(found.boxes.found), f"{found.boxes.differing} differ", "")
    return table
