"""`yolorep verify`: two checkpoint files on noise, on images and on a data set."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from yolorep.hosts import checkpoints, evaluate
from yolorep.verification import verify_as_stored


def verify_files(
    before: Path,
    after: Path,
    *,
    images: Path | None = None,
    data: Path | None = None,
    imgsz: int | None = None,
    repo: Path | None = None,
    console: Console,
) -> bool:
    """Compare two checkpoints on noise, on images and on a data set; return whether all agree.

    Both are judged by the precision that `after` is stored in, float16 included.
    images: compare what the models predict: boxes after NMS, with masks or keypoints, or class probabilities.
    data: compare the figures of the host's own validation. imgsz: pixels, of both; by default the task's.

    Raises:
        CheckpointError, HostError, UsageError, VerifyError: an input is not there, or the two cannot be compared.
    """
    a, b = (checkpoints.load(path, repo) for path in (before, after))
    evaluate.check_inputs(images, data)
    report = verify_as_stored(a.model, b.model, b.dtype)
    console.print(report)
    agree = report.ok
    if images is None and data is None:
        return agree
    evaluators = [evaluate.evaluator(path, imgsz=imgsz, repo=repo) for path in (before, after)]
    if images is not None:
        alike = evaluate.compare_images(evaluators[0], evaluators[1], images)
        console.print(str(alike))
        agree &= _passes([] if alike.ok else [f"{alike.differing} of the {alike.task.nouns}"], b.dtype, console)
    return agree if data is None else agree & _same_figures(evaluators[0], evaluators[1], data, b.dtype, console)


def _same_figures(
    a: evaluate.Evaluator, b: evaluate.Evaluator, data: Path, stored: torch.dtype, console: Console
) -> bool:
    before, after = (evaluate.figures(one, data) for one in (a, b))
    width = max(map(len, before))
    for name, value in before.items():
        console.print(f"{name:{width}} {value:.5f} → {after[name]:.5f} ({after[name] - value:+.1e})")
    if not any(before.values()) and not any(after.values()):
        console.print(f"all figures on {data} are 0 for both models: there was nothing to compare")
    return _passes(
        [name for name, value in before.items() if not evaluate.same_figure(value, after[name])], stored, console
    )


def _passes(different: list[str], stored: torch.dtype, console: Console) -> bool:
    """Say which predictions or figures differ; return whether none does. stored: dtype of the second file's weights."""
    if different:
        half = " (it stores float16; `yolorep deploy --float32` rounds less)" if stored == torch.float16 else ""
        console.print(f"FAILS: beyond the tolerance: {', '.join(different)}{half}")
    return not different
