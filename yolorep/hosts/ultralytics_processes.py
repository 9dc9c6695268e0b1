"""Training on several devices with ultralytics: the processes that it starts by a script of its own have the hooks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import yolorep
from yolorep.hosts.common import require
from yolorep.hosts.hooks import Hooks
from yolorep.hosts.offline import is_offline


def attach(dist: ModuleType) -> Hooks:
    """Hook the imported module `ultralytics.utils.dist`.

    Raises:
        HostError: this version has no place for a hook.
    """
    require(dist, "generate_ddp_file", supported="ultralytics 8.2 to 8.4")
    hooks = Hooks()
    hooks.wrap(dist, "generate_ddp_file", _generate)
    return hooks


def _generate(original: Any, *args: Any, **kwargs: Any) -> Any:
    """The host's script begins with what this process has: a model named by its YAML is found by the hooks alone."""
    file = original(*args, **kwargs)
    script = Path(file)
    script.write_text(_preamble() + script.read_text(encoding="utf-8"), encoding="utf-8")
    return file


def _preamble() -> str:
    folder = str(Path(yolorep.__file__).parents[1])  # the script is elsewhere, and does not see this working directory
    lines = ["import sys", f"sys.path.append({folder!r})", "import yolorep"]
    if is_offline():
        lines += ["from yolorep.hosts.offline import go_offline", "go_offline()"]
    return "\n".join(lines) + "\n"
