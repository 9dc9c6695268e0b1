"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import yolorep

SKIPPED = ("yolorep.__main__",)  # its import starts the command line


def modules() -> list[str]:
    found = pkgutil.walk_packages(yolorep.__path__, "yolorep.")
    return sorted(module.name for module in found if not module.name.startswith(SKIPPED))


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", modules())
def test_examples_of_a_module_run(name: str) -> None:
    importlib.import_module("ultralytics")  # it tells of its settings when it is imported for the first time
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples(module):
        runner.run(test)
    assert runner.failures == 0


def test_public_functions_have_examples() -> None:
    public = [getattr(yolorep, name) for name in ("Conv_C3", "Bottleneck", "C3", "fold", "deploy", "expand", "verify")]
    without = [thing.__name__ for thing in public if ">>>" not in (thing.__doc__ or "")]
    assert without == []
