"""Backends of one model against PyTorch in float32: checked first, then timed in turns."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import Tensor

from yolorep.bench.agreement import Agreement, agreement
from yolorep.bench.backend_rows import Comparison, Row
from yolorep.bench.backends.job import Backend, Job, Predictions, Running
from yolorep.bench.backends.table import BACKENDS, REFERENCE
from yolorep.bench.host_steps import is_detector, nms, pictures, preprocess
from yolorep.bench.measure import Settings, checked
from yolorep.bench.subjects import DEPLOYED, Subjects
from yolorep.bench.timing import interleave
from yolorep.errors import UsageError, first_line
from yolorep.hosts.ultralytics.build import quiet

PREPROCESS, NMS = "pre-processing", "NMS"
CALIBRATION = 64  # images for INT8
CHECKED = 16  # images on which boxes are compared
SLOWEST = 10  # a backend that takes so many times as long as the reference is not timed
TRIALS = 3  # calls; the fastest one counts, because other work on the machine can slow down a single call


def chosen(names: Sequence[str] | None) -> list[Backend]:
    """Return the backends of these names; all for None. `eager`, the reference, is always among them.

    Raises:
        UsageError: a name is unknown.
    """
    unknown = next((name for name in names or () if name not in BACKENDS), None)
    if unknown is not None:
        raise UsageError(f"backend {unknown!r} is unknown; accepted: all, {', '.join(BACKENDS)}")
    return [backend for name, backend in BACKENDS.items() if names is None or name in (REFERENCE, *names)]


def compare_backends(
    subjects: Subjects,
    settings: Settings,
    backends: Sequence[Backend],
    *,
    images: Path | None = None,
    every_form: bool = False,
    repo: Path | None = None,
    compares_boxes: bool = True,
    watch: Callable[[str], Callable[[], object]] = lambda _: lambda: None,
) -> list[Comparison]:
    """Check and time every form in every backend, for each batch and size of the settings.

    images: an image or a folder, for the check and for the calibration of INT8; by default ultralytics' two pictures.
    every_form: run the unfused and the stock form in all backends, not only in those of PyTorch. compares_boxes: False
    for random weights, whose boxes change with every rounding; outputs are compared then. watch: called with the
    name of each row before it starts, and of each run before it is timed; its result is called after each round.

    Raises:
        UsageError: a setting is not accepted, or there is nothing to compare with.
    """
    device = checked(settings)
    for size in settings.sizes:
        if size % subjects.stride:
            raise UsageError(f"{subjects.name} takes sizes that are multiples of {subjects.stride}, not {size}")
    read = pictures(images, CALIBRATION)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        runs = [(batch, size) for size in settings.sizes for batch in settings.batches]
        found = [
            _Comparison(subjects, settings, device, read, batch, size, repo, compares_boxes, watch).run(
                backends, every_form
            )
            for batch, size in runs
        ]
        return [replace(one, own_images=images is not None) for one in found]
    finally:
        torch.set_num_threads(threads)


class _Comparison:
    """The work on one batch and size."""

    def __init__(
        self,
        subjects: Subjects,
        settings: Settings,
        device: torch.device,
        read: list[Any],
        batch: int,
        size: int,
        repo: Path | None,
        compares_boxes: bool,
        watch: Callable[[str], Callable[[], object]],
    ) -> None:
        self.subjects, self.settings, self.device, self.watch = subjects, settings, device, watch
        self.batch, self.size = batch, size
        model = subjects.forms[DEPLOYED]
        self.detector = is_detector(model)
        self.nms = nms(model, repo) if self.detector and compares_boxes else None
        self.raw = (read * batch)[:batch]
        self.calibration = preprocess(read, size)
        shown = self.calibration[:CHECKED]
        padding = -len(shown) % batch
        self.shown = torch.cat([shown, shown[:1].expand(padding, -1, -1, -1)]).split(batch)
        self.checked = len(shown)
        self.expected: list[list[Tensor]] = []
        self.calls: dict[str, Callable[[], object]] = {}
        self.reference = 0.0  # seconds of a call of the first row

    def run(self, backends: Sequence[Backend], every_form: bool) -> Comparison:
        rows, running = [], []
        forms = sorted(self.subjects.forms, key=lambda form: form != DEPLOYED)  # the reference is the first row
        with TemporaryDirectory(prefix="yolorep-bench-") as root, torch.inference_mode(), quiet():
            for index, form in enumerate(forms):
                folder = Path(root) / str(index)
                folder.mkdir()
                for backend in backends:
                    if form == DEPLOYED or backend.every_form or every_form:
                        row, started = self._row(form, backend, folder)
                        rows.append(row)
                        running += [started] if started else []
            if rows[0].error is not None:
                raise UsageError(f"{self.subjects.name}: {self.device} cannot run it: {rows[0].error}")
            stages = self._stages()
            name = f"{self.subjects.name}, batch {self.batch}, {self.size} px"
            with torch.backends.cudnn.flags(benchmark=True) if self.device.type == "cuda" else nullcontext():
                rounds = self.settings.rounds
                timing = interleave(self.calls, rounds, self.device, after_round=self.watch(name))
                # Apart: a sample repeats all calls as often as the fastest of them needs.
                steps = interleave(stages, rounds, self.device) if stages else None
        shape: dict[str, Any] = {
            "batch": self.batch,
            "size": self.size,
            "images": self.checked,
            "calibration": len(self.calibration),
        }
        return Comparison(self.subjects.name, rows=rows, timing=timing, steps=steps, device=str(self.device), **shape)

    def _row(self, form: str, backend: Backend, folder: Path) -> tuple[Row, Running | None]:
        """Start, check and register one form in one backend; any failure becomes the row's error."""
        row = Row(form, backend.name, backend.precision)
        why = backend.missing(self.device)
        if why is not None:
            return replace(row, error=why), None
        self.watch(row.name)
        gc.collect()
        before = self._memory()
        try:
            with _silent():
                running = backend.start(self._job(form, folder))
            running.load(self.shown[0])
            running.call()
            memory = max(self._memory() - before, 0)
            row = replace(row, agreement=self._agreement(running), memory=memory, file=_size(running.file))
            slower = self._slower(running)
        except Exception as error:  # any of a dozen libraries
            return replace(row, error=f"{type(error).__name__}: {first_line(error)}"[:300]), None
        if slower > SLOWEST:
            return replace(row, error=f"it takes {slower:.0f} times as long as {REFERENCE} in float32"), None
        running.load(self.shown[0])
        self.calls[row.name] = running.call
        return row, running

    def _slower(self, running: Running) -> float:
        """Return the time of the fastest of a few calls / the reference's. The first row is the reference."""
        fastest = ratio = float("inf")
        for _ in range(TRIALS):
            began = perf_counter()
            running.outputs(running.call())
            fastest = min(fastest, perf_counter() - began)
            ratio = fastest / (self.reference or fastest)
            if self.reference and ratio <= SLOWEST:
                break
        self.reference = self.reference or fastest
        return ratio

    def _job(self, form: str, folder: Path) -> Job:
        model = Predictions(deepcopy(self.subjects.forms[form]), first=self.detector).eval()
        threads = torch.get_num_threads()
        return Job(model, self.shown[0].clone(), self.calibration, self.device, threads, folder)

    def _agreement(self, running: Running) -> Agreement:
        """Compare the outputs on all images with those of the first row, which is the reference."""
        got: list[list[Tensor]] = []
        for images in self.shown:
            running.load(images)
            got.append(running.outputs(running.call()))
        if not self.expected:
            self.expected = got
        pairs = list(zip(self.expected, got, strict=True))
        if self.nms is None:
            return max((agreement(a, b) for a, b in pairs), key=lambda one: one.output)
        boxes, found = (
            [b for outputs in side for b in self.nms(outputs[0])][: self.checked] for side in zip(*pairs, strict=True)
        )
        outputs = [[torch.cat(column) for column in zip(*side, strict=True)] for side in (self.expected, got)]
        return agreement(outputs[0], outputs[1], boxes, found)

    def _stages(self) -> dict[str, Callable[[], object]]:
        """Return the calls around the network: pre-processing of a batch, and NMS of the reference's predictions."""
        stages: dict[str, Callable[[], object]] = {}
        if self.detector and self.nms is not None:
            predictions = self.expected[0][0].to(self.device)
            stages[PREPROCESS] = lambda: preprocess(self.raw, self.size).to(self.device)
            stages[NMS] = partial(self.nms, predictions)
        return stages

    def _memory(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory_allocated(self.device)
        return psutil.Process().memory_info().rss


def _size(file: Path | None) -> int | None:
    """Return the bytes of an exported file, with the weights beside it."""
    if file is None:
        return None
    return sum(part.stat().st_size for part in {file, file.with_suffix(".bin")} if part.exists())


@contextmanager
def _silent() -> Iterator[None]:
    """Hold back what converters print and warn of; an error is raised all the same."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
