"""The record of a benchmark: where and under which settings it ran, and files that are replaced together."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from yolorep.errors import UsageError, first_line
from yolorep.paths import exists

PACKAGES = ("yolorep", "ultralytics", "yolov5", "torch", "torchvision", "numpy")
ALLOCATOR_SETTINGS = ("MALLOC_", "LD_PRELOAD")  # prefixes of environment variables that change memory allocation
Content = bytes | str | Callable[[Path], object]


def torch_flags() -> dict[str, Any]:
    """Return the settings of torch that change a timing, as they are at this moment.

    `interleave` takes this snapshot while it measures, so that a record holds what was set and not what was intended.
    """
    return {
        "threads": torch.get_num_threads(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "tf32_convolutions": _read(lambda: torch.backends.cudnn.allow_tf32),
        "tf32_matmul": _read(lambda: torch.backends.cuda.matmul.allow_tf32),
        "float32_matmul_precision": _read(torch.get_float32_matmul_precision),
    }


def describe(script: str, device: str, flags: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the head of a record: date, script, command line, commit, machine and package versions.

    script: name of the command or benchmark. device: 'cpu', 'cuda' or 'cuda:N'. flags: `torch_flags()` taken while
    measuring; by default today's. more: further entries, such as the schedule of a training.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "script": script,
        "arguments": sys.argv[1:],
        "git": git_commit(),
        "machine": machine(device, flags),
        "packages": versions(PACKAGES),
        "device": device,
        **more,
    }


def machine(device: str, flags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return processor, GPU, operating system and the settings of torch."""
    gpu = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if gpu else None,
        "gpu_memory_gib": _gpu_memory(device) if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        **(torch_flags() if flags is None else flags),
        "allocator": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ALLOCATOR_SETTINGS)},
        "system": platform.system(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """Return the processor's name; `platform.processor` gives only its family on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Return the installed version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout that yolorep runs from, with '+' for uncommitted changes; else None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + "+" * bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write one record; a reader sees the old file or the new one, never a part."""
    replace_together({file: as_json(record)})


def read_json(file: Path) -> dict[str, Any]:
    """Read a record that `write_json` wrote.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({first_line(error)}); accepted: another folder") from None
    if not isinstance(record, dict):
        raise UsageError(f"{file} is not a record of yolorep; accepted: another folder")
    return record


def as_json(record: Mapping[str, Any]) -> str:
    """Return a record as the text of its JSON file."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def replace_together(files: Mapping[Path, Content]) -> None:
    """Write several files that belong together, so that none of them ever stands beside an older one.

    files: path → text, bytes, or a function that writes the file at the path that it is given. Everything is written
    to unfinished files first. Then the old files are removed, and the new ones take their names in order. After a
    kill at any moment, the files present are all old or all new. Unfinished files have fixed names, so the next
    run replaces those that a killed run left.

    Raises:
        UsageError: the files cannot be written, for example because the disk is full; the old ones are then intact.
    """
    unfinished = {path: path.with_name(f".{path.stem}.unfinished{path.suffix}") for path in files}
    path = next(iter(files))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            _write(unfinished[path], content)
        for path in list(files)[1:]:
            path.unlink(missing_ok=True)
        for path in files:
            os.replace(unfinished[path], path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        for leftover in unfinished.values():
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Check that results can be written to `folder`, or that the folder can be made.

    Raises:
        UsageError: they cannot.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    exists(folder / "bench.json")  # raises where the system does not take such a path
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"{folder} cannot be written to; accepted for --out: a folder, or the name of a new one")


def _write(file: Path, content: Content) -> None:
    if callable(content):
        content(file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content, encoding="utf-8")
    with file.open("r+b") as written:
        os.fsync(written.fileno())  # a full disk may show only here


def _read(flag: Callable[[], Any]) -> Any:
    """Read one setting; torch refuses to when its old and new names for it were both used."""
    try:
        return flag()
    except RuntimeError:
        return "mixed"


def _gpu_memory(device: str) -> float:
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
