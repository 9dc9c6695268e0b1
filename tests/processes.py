"""The `yolorep` command in a process of its own whose network is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fork_server import execute

# Everything but the loopback raises, and says so, so that a host that catches the error is found out too.
NO_NETWORK = """
import socket, sys

def guard(name, real):
    def call(*args, **kwargs):
        address = args[1] if name.startswith("connect") else args[0]
        host = address[0] if isinstance(address, tuple) else address
        unix = name.startswith("connect") and args[0].family == socket.AF_UNIX
        if not unix and host is not None and str(host) not in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
            print("NETWORK", name, address, file=sys.stderr, flush=True)
            raise OSError("the network is refused")
        return real(*args, **kwargs)
    return call

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, guard(name, getattr(socket.socket, name)))
socket.getaddrinfo = guard("getaddrinfo", socket.getaddrinfo)
"""
LAUNCH = """
import runpy
sys.argv[0] = "yolorep"
runpy.run_module("yolorep", run_name="__main__", alter_sys=True)
"""


def yolorep(*arguments: object, cwd: Path, code: int = 0) -> str:
    """What `yolorep ARGUMENTS` prints, both streams."""
    return run(NO_NETWORK + LAUNCH, *arguments, cwd=cwd, code=code)


def run(
    python: str, *arguments: object, cwd: Path, code: int = 0, optional: str = "", fresh: bool = False, **env: str
) -> str:
    """What a program prints, both streams, in a process of its own that finds the package under test.

    optional: a module without which the test is skipped, because the program is not yolorep's.
    fresh: in an interpreter that has imported nothing (`tests.fork_server`).
    """
    done = execute(python, arguments, env, cwd, timeout=600, fresh=fresh)
    printed = done.stdout + done.stderr
    if optional and f"No module named '{optional}'" in printed:
        pytest.skip(f"optional host: this tree needs {optional}")
    assert done.returncode == code, printed[-4000:]
    assert "NETWORK" not in printed, printed[-4000:]
    return printed
