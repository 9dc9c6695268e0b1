"""Runs programs as forks of a process that has imported the large libraries, so that each starts in milliseconds.

A program finds what `python -c PROGRAM ARGUMENTS` finds: its environment, working directory, streams, `sys.argv` and
`sys.path`, and ends as that does. torch, OpenCV and other libraries are imported already; yolorep and the hosts are
not, nor torchvision, whose presence changes what ultralytics does (it is imported at once where it is asked for).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = (
    *("torch", "torch._dynamo", "torch._inductor.config", "torch.onnx", "torch.utils.data", "torch.distributed"),
    *("torch.utils.tensorboard", "torchvision", "cv2", "numpy", "pandas", "scipy.ndimage", "scipy.signal", "seaborn"),
    *("matplotlib.pyplot", "PIL.ImageDraw", "PIL.ImageFont", "PIL.ImageOps", "yaml", "requests", "psutil", "onnx"),
    *("onnxscript", "typer", "click", "rich.console", "rich.table", "pydantic.dataclasses", "pydantic.json_schema"),
    *("wrapt", "unittest", "doctest", "requests_toolbelt", "filetype", "platformdirs"),
)
# YOLOv5 calls `inspect.stack` as it is imported, which looks in all modules for that of each frame of an import.
FROZEN = {f"<frozen {name}>": name for name in ("importlib._bootstrap", "importlib._bootstrap_external")}
ASLEEP = "torchvision"
# What libraries read while they are imported. A program whose environment differs in one gets a process of its own.
EARLY = (
    *("PYTHON", "HOME", "MPL", "XDG_", "TMP", "TEMP", "LANG", "LC_"),
    *("OMP_", "MKL_", "KMP_", "OPENBLAS_"),
)
START = """
with __import__("tests.fork_server", fromlist=["serve"]).serve({!r}) as program:
    exec(globals().pop("program"))
"""
Completed = subprocess.CompletedProcess[str]


def with_package(environment: dict[str, str]) -> dict[str, str]:
    """The environment in which the package under test is found, and in which torch starts no threads.

    Of what libraries read early, a program gets what the tests were started with: the hosts set PYTHONHASHSEED and
    others in the process of the tests.
    """
    path = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT), STARTED.get("PYTHONPATH"))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(EARLY)}
    return {**inherited, **STARTED, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": path}


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(EARLY)}


STARTED = _early(os.environ)
BASE = with_package({})


class ForkServer:
    """A process that imports modules when the first program is run, and forks for each."""

    def __init__(self, preload: tuple[str, ...] = LIBRARIES) -> None:
        self.preload = preload
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def run(
        self,
        code: str,
        arguments: list[str],
        environment: dict[str, str],
        cwd: Path,
        timeout: float,
        merged: bool = False,
    ) -> Completed:
        """What `subprocess.run` returns for `python -c CODE ARGUMENTS` with both streams captured.

        merged: both in `stdout`, in the order in which they are written.
        """
        with tempfile.TemporaryDirectory(prefix="yolorep-fork-") as place, self._one_at_a_time:
            streams = [Path(place, name) for name in ("out", "out" if merged else "err")]
            request = {"code": code, "arguments": arguments, "environment": environment, "cwd": str(cwd)}
            self._send({**request, "streams": list(map(str, streams))})
            child, ended = int(self._line(None)), self._line(timeout)
            if not ended:
                os.kill(child, signal.SIGKILL)
                self._line(None)
                raise subprocess.TimeoutExpired(code, timeout)
            out, err = (stream.read_text(errors="replace") for stream in streams)
            return subprocess.CompletedProcess(code, int(ended), out, "" if merged else err)

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None:
            command = [sys.executable, "-c", START.format(self.preload)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(command, env=with_package({}), cwd=ROOT, **pipes)  # type: ignore[call-overload]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _line(self, timeout: float | None) -> str:
        """The next line of the server, or nothing after that many seconds."""
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return ""
        line = self._process.stdout.readline().decode()
        assert line, f"the fork server has ended with {self._process.wait()}"
        return line


PROGRAMS = ForkServer()


def execute(code: str, arguments: tuple[object, ...], env: dict[str, str], cwd: Path | None, timeout: float,
            fresh: bool = False) -> Completed:  # fmt: skip
    """Run a program with the package under test, in a fork where that is the same.

    fresh: in an interpreter that has imported nothing, because imports are what is tested, or threads and processes.
    """
    words, environment, folder = [*map(str, arguments)], with_package(env), Path(cwd or Path.cwd())
    if fresh or sys.platform != "linux" or _early(environment) != _early(BASE):
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=timeout)
    return PROGRAMS.run(code, words, environment, folder, timeout)


def serve(preload: tuple[str, ...]) -> Program:
    """In the server: import, then fork for each request; in the fork, return what it is to execute.

    The program runs where `python -c` runs it, at the end of the interpreter's stack, so that a traceback, an exit code
    and what is called at exit are the interpreter's own.
    """
    program = Program()
    atexit.register(program.leave)  # the first, which is called last
    for name in preload:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # an optional library, or a name of another version
    inspect.modulesbyfile.update(FROZEN)  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.buffer.readline, b""):
        child = os.fork()
        if not child:
            program.become(json.loads(line))
            return program
        os.write(1, f"{child}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    sys.exit()


class Program:
    """What a fork executes, and its exit code."""

    code: str | None = None
    exit = 0

    def become(self, request: dict[str, Any]) -> None:
        """Give this process the streams, the folder, the environment and the arguments of a request."""
        for number, name in enumerate((os.devnull, *request["streams"])):
            opened = os.open(name, os.O_CREAT | os.O_RDWR | os.O_APPEND)
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[1:] = request["arguments"]
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].default_generator.seed()
        sys.meta_path.insert(0, _Asleep(ASLEEP))
        for name in ("tests", __name__):
            sys.modules.pop(name, None)
        self.code = request["code"]

    def __enter__(self) -> str:
        return str(self.code)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        code = error.code if isinstance(error, SystemExit) else error and 1
        self.exit = code if isinstance(code, int) else int(code is not None)
        if isinstance(error, KeyboardInterrupt):
            self.exit = -signal.SIGINT

    def leave(self) -> None:
        """End the process without taking the libraries apart object by object, which takes most of a second."""
        if self.code is not None and "coverage" not in sys.modules:  # which writes later what it has measured
            for each in gc.get_objects():
                if isinstance(each, io.IOBase) and not each.closed and each.writable():
                    each.flush()
            if self.exit == -signal.SIGINT:  # as the interpreter ends
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(self.exit & 0xFF)


class _Asleep:
    """Imports again what this process has imported already, and took out of `sys.modules`."""

    def __init__(self, name: str) -> None:
        self.modules = {key: sys.modules[key] for key in [*sys.modules] if key.partition(".")[0] == name}
        self.name, self.spec = name, getattr(self.modules.get(name), "__spec__", None)
        for key in self.modules:
            del sys.modules[key]

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == self.name and self.modules else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        module.__spec__ = self.spec
        sys.modules.update(self.modules)
