"""A program that is run in a fork does, prints and returns what the interpreter does with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import fork_server
from tests.fork_server import execute

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
PROGRAMS = {
    "both streams": "import sys; print('out'); print('err', file=sys.stderr); print('a\\rb\\r\\nc')",
    "arguments": "import sys; print(sys.argv, sys.path, sys.flags, __name__, sorted(globals()))",
    "environment": "import os; print(sorted(item for item in os.environ.items() if item[0] != 'LC_CTYPE'))",
    "what a child sees": "import os; os.system('pwd; echo $YOLOREP_GIVEN $YOLOREP_ABSENT')",
    "standard input": "import sys; print(repr(sys.stdin.read()), sys.stdin.isatty(), sys.stdout.isatty())",
    "encoding": "import sys; print(sys.stdout.encoding, sys.stdout.line_buffering, '\\u2192')",
    "exit code": "raise SystemExit(3)",
    "a text as exit code": "raise SystemExit('wrong')",
    "an exception": "def f():\n    raise ValueError('planted')\nf()",
    "an interrupt": "raise KeyboardInterrupt",
    "success by its code": "raise SystemExit(False)",
    "a signal": "import os; os.kill(os.getpid(), 9)",
    "at exit": "import atexit; atexit.register(print, 'last'); raise SystemExit(1)",
    "threads": "import threading as t; t.Thread(target=print, args=('later',)).start()",
    "an open file": "import os; f = open('a.txt', 'w'); f.write('text'); import atexit\n"
    "atexit.register(lambda: print(f.flush(), os.listdir(), open('a.txt').read()))",
    "threads of torch": "import torch; print(torch.get_num_threads(), torch.rand(999, 999).square().mean() > 0)",
    "hosts": "import sys; print([n for n in ('yolorep', 'ultralytics', 'tests', 'torchvision') if n in sys.modules])",
    "torchvision": "import torchvision.ops as o, torchvision as t; print(o.nms.__module__, t.__spec__.origin)",
    "another process": "import multiprocessing as m\nif __name__ == '__main__':\n"
    "    p = m.get_context('spawn').Process(target=print, args=('there',)); p.start(); p.join(); print(p.exitcode)",
}


def both(program: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    given = {"YOLOREP_GIVEN": "here"}
    return [execute(program, ("one", 2), given, folder, 100, fresh=fresh) for fresh in (False, True)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fork_is_like_a_fresh_process(name: str, tmp_path: Path) -> None:
    forked, fresh = both(PROGRAMS[name], tmp_path)
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]
    assert ("Traceback" in forked.stderr) == ("Traceback" in fresh.stderr)


def test_nothing_is_left_by_one_program_for_the_next(tmp_path: Path) -> None:
    leaves = "import os, sys, torch; os.environ['YOLOREP_LEFT'] = '1'; sys.path.append('left'); torch.manual_seed(1)\n"
    asks = "print(os.environ.get('YOLOREP_LEFT'), 'left' in sys.path, torch.initial_seed() == 1, 'json' in globals())"
    execute(leaves + "import json", (), {}, tmp_path, 100)
    assert execute(f"import os, sys, torch; {asks}", (), {}, tmp_path, 100).stdout == "None False False False\n"


def test_random_numbers_of_two_programs_differ(tmp_path: Path) -> None:
    draw = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    first, second = (execute(draw, (), {}, tmp_path, 100).stdout.split() for _ in range(2))
    assert not set(first) & set(second)


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        execute("import time; time.sleep(60)", (), {}, tmp_path, 0.5)
    assert execute("print('next')", (), {}, tmp_path, 100).stdout == "next\n"


@pytest.mark.parametrize("name", ["HOME", "MPLBACKEND", "PYTHONPATH", "OMP_NUM_THREADS"])
def test_what_libraries_read_as_they_are_imported_is_no_forks_to_change(name: str, tmp_path: Path) -> None:
    import cv2  # noqa: F401  # adds to LD_LIBRARY_PATH
    import ultralytics  # noqa: F401

    asks = "import sys; print('torch' in sys.modules)"
    assert execute(asks, (), {name: "2"}, tmp_path, 100).stdout == "False\n"
    assert execute(asks, (), {}, tmp_path, 100).stdout == "True\n"


@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "KMP_DUPLICATE_LIB_OK", "OMP_NUM_THREADS"])
def test_what_the_hosts_set_in_the_process_of_the_tests_changes_no_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ultralytics sets PYTHONHASHSEED when it trains; from then on every program had been started anew."""
    asks = f"import os, sys; print('torch' in sys.modules, sys.flags.hash_randomization, os.getenv({name!r}))"
    before = execute(asks, (), {}, tmp_path, 100).stdout
    assert before.startswith("True 1 ")
    monkeypatch.setenv(name, "7")
    assert execute(asks, (), {}, tmp_path, 100).stdout == before
    assert execute(asks, (), {}, tmp_path, 100, fresh=True).stdout == before.replace("True", "False")
    assert execute(asks, (), {name: "7"}, tmp_path, 100).stdout.endswith(" 7\n")


def test_the_server_has_one_thread_when_it_forks(tmp_path: Path) -> None:
    """A fork has none of its parent's threads, and would wait for them for ever."""
    counts = "import os; print(len(os.listdir(f'/proc/{os.getppid()}/task')), len(os.listdir('/proc/self/task')))"
    assert execute(counts, (), {}, tmp_path, 100).stdout == "1 1\n"
    assert {"torch", "cv2", "torch._dynamo"} <= set(fork_server.LIBRARIES)
