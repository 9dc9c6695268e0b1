"""One row of the GPU benchmark: a case, its verdict and its values. A case that fails never stops the run."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from yolorep.errors import first_line

OK, FAULT, ERROR, SKIPPED, MEASURED = "ok", "fault", "error", "skipped", "measured"
BAD = (FAULT, ERROR)
Row = dict[str, Any]
Rows = Iterator[Row]


class SkipError(Exception):
    """A case that this machine cannot run; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """device: where the items run. toy: smallest sizes, so that the whole benchmark takes seconds on a CPU."""

    device: torch.device
    toy: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        """The autocast dtype of training: float16 on a GPU, as the hosts use it; a CPU has no fast float16."""
        return torch.float16 if self.cuda else torch.bfloat16

    def need_cuda(self) -> None:
        """Check that the device is a GPU.

        Raises:
            SkipError: it is not.
        """
        if not self.cuda:
            raise SkipError("needs a CUDA device")


@dataclass(frozen=True)
class Found:
    """Result of a case. ok: None for a timing, which nothing judges. text: for the table. values: for the JSON file."""

    ok: bool | None
    text: str
    values: dict[str, Any]


def row(case: str, measure: Callable[[], Found]) -> Row:
    """Run one case and return its row; any exception becomes the row's verdict."""
    try:
        found = measure()
    except SkipError as reason:
        return {"case": case, "verdict": SKIPPED, "text": str(reason)}
    except Exception as error:
        text = f"{type(error).__name__}: {first_line(error)}"
        return {"case": case, "verdict": ERROR, "text": text, "traceback": traceback.format_exc()}
    finally:
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()
    verdict = MEASURED if found.ok is None else OK if found.ok else FAULT
    return {"case": case, "verdict": verdict, "text": found.text, **found.values}
