"""Blocks of the user's own: Python files that are named on a command line, and packages that are installed.

A file is recorded in an environment variable, so that every process that a training starts loads it too. Both kinds
are loaded when `yolorep.blocks` is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from yolorep.console import say
from yolorep.errors import UsageError, first_line, line_in
from yolorep.paths import is_file

GROUP = "yolorep.blocks"  # entry points: modules that register blocks
ENVIRONMENT = "YOLOREP_PLUGINS"  # absolute paths, separated as in PATH
OPTION = "plugin"
_loaded: dict[str, ModuleType] = {}  # by path


def use(file: str | Path) -> None:
    """Load a Python file that registers blocks, here and in every process that this one starts.

    Raises:
        UsageError: it is not there, is no Python file, or raises.
    """
    path = Path(file)
    if path.suffix != ".py" or not is_file(path):
        raise UsageError(
            f"plugin={file} is not a file; accepted: a Python file that registers blocks, such as myblock.py"
        )
    path = path.resolve()
    if os.pathsep in str(path):
        raise UsageError(f"plugin={path} has {os.pathsep!r} in its path, which separates plugins; move the file")
    known = _named_in_environment()
    load(str(path))
    if str(path) not in known:
        os.environ[ENVIRONMENT] = os.pathsep.join([*known, str(path)])


def load_all() -> None:
    """Load the plugins of installed packages and those that this process has inherited; each once.

    An installed package that cannot be loaded is named and passed over.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # of another package
            say(f"the blocks of {point.value} ({GROUP}) are left out: {type(error).__name__}: {first_line(error)}")
    for path in _named_in_environment():
        load(path)


def load(path: str) -> None:
    """Import a file under its own name, as Python would from its folder.

    Raises:
        UsageError: it raises, or its name is that of another module.
    """
    from yolorep.blocks.registry import BLOCKS, MASKED  # which imports all blocks

    if path in _loaded:
        return
    name = Path(path).stem
    other = sys.modules.get(name)
    if other is not None:
        if os.path.realpath(getattr(other, "__file__", None) or "") == path:  # imported by the user
            _loaded[path] = other
            return
        raise UsageError(f"plugin={path}: a module {name!r} is imported already, of another file; rename the plugin")
    loader = SourceFileLoader(name, path)
    _loaded[path] = sys.modules[name] = module = module_from_spec(spec_from_loader(name, loader))  # type: ignore[arg-type]
    before = BLOCKS.keys() | MASKED.keys()
    try:
        loader.exec_module(module)
    except BaseException as error:
        del _loaded[path], sys.modules[name]
        for registry in (BLOCKS, MASKED):
            for added in registry.keys() - before:
                del registry[added]
        if not isinstance(error, Exception):
            raise
        told = f"{type(error).__name__}: {first_line(error)}{line_in(error, path)}"
        raise UsageError(f"plugin={path} cannot be loaded: {told}") from error
    if before == BLOCKS.keys() | MASKED.keys():
        say(f"plugin={path} registers no block; a declaration of one stands under @register_block('NAME')")


def modules() -> tuple[str, ...]:
    """Return the names of the modules that are loaded as plugins; checkpoints may name their layers."""
    return tuple(module.__name__ for module in _loaded.values())


def from_pairs(arguments: Iterable[str]) -> list[str]:
    """Use every plugin=FILE among ARG=VALUE arguments; return the others.

    Raises:
        UsageError: as `use`.
    """
    rest = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name.lstrip("-") == OPTION:
            use(value)
        else:
            rest.append(argument)
    return rest


def from_flags(arguments: Sequence[str]) -> list[str]:
    """Use every --plugin FILE and --plugin=FILE among a script's arguments; return the others.

    Raises:
        UsageError: as `use`, or a file is missing after --plugin.
    """
    rest, words = [], iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != f"--{OPTION}":
            rest.append(word)
        elif not equals and (value := next(words, "")) == "":
            raise UsageError(f"--{OPTION} has no value; accepted: a Python file that registers blocks")
        else:
            use(value)
    return rest


def _named_in_environment() -> list[str]:
    return [path for path in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if path]
