"""Train and run on all CPU cores: ultralytics leaves one core idle, which is half of a machine with two."""

from __future__ import annotations

import os
from types import ModuleType

import wrapt

LARGEST = 8  # ultralytics' own limit: more threads bring nothing to models of this size


def available_cores() -> int:
    """Return the number of cores that torch may use in this process: OMP_NUM_THREADS, else `process_cores`."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else process_cores()


def process_cores() -> int:
    """Return the number of cores that this process may run on: the CPU affinity or all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(threads: int) -> None:
    """Let ultralytics run torch with `threads` threads on a CPU, now or when it is imported.

    Call before ultralytics is imported: it sets OMP_NUM_THREADS to 1 for its process if the user did not set it.
    """

    def replace(module: ModuleType) -> None:
        if hasattr(module, "NUM_THREADS"):  # `select_device` passes it to torch.set_num_threads
            module.NUM_THREADS = threads  # type: ignore[attr-defined]

    wrapt.register_post_import_hook(replace, "ultralytics.utils.torch_utils")


def use_all_cores() -> None:
    """Let ultralytics use every core that this process may use, up to its own limit of 8 threads."""
    use_threads(min(LARGEST, available_cores()))
