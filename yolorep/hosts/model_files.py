"""Check a user's model YAML before a host reads it, so that a refusal comes before a folder for the run."""

from __future__ import annotations

import re
from pathlib import Path

from yolorep.errors import UsageError
from yolorep.host import Host
from yolorep.hosts.based_yaml import with_base
from yolorep.hosts.shared_hooks import naming, read_yaml
from yolorep.model_yaml import ROW_KINDS, plan
from yolorep.paths import is_dir, is_file
from yolorep.row_schema import LAYOUT, check_model

SUFFIXES = (".yaml", ".yml")


def check_model_yaml(file: Path, host: Host, tree: Path | None = None) -> None:
    """Check a model YAML where it is a file; a bare name of a shipped model passes.

    tree: the YOLOv5 tree that will build it, whose classes go before yolorep's.

    Raises:
        BlockError, HostError: the file cannot be read, or a row or the policy is not accepted; the message names both.
        UsageError: it is a folder, or the system does not let the path be opened.
    """
    if file.suffix.lower() not in SUFFIXES:
        return
    if is_dir(file):
        raise UsageError(f"{file} is a folder; accepted: a model YAML")
    if not is_file(file):
        return
    content = read_yaml(file, f"a model YAML; {LAYOUT}")
    with naming(file):
        content = with_base(content, file, host, tree)
        check_model(content)
        plan(content, host, taken=None if tree is None else classes_of(tree))


def classes_of(tree: Path) -> frozenset[str]:
    """Return the names of yolorep's rows that are classes of a tree, read from its source without importing it."""
    files = [path for path in (tree / "models").glob("*.py") if path.is_file()]
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)
    return frozenset(name for name in ROW_KINDS if re.search(rf"^class {name}\b", text, re.MULTILINE))
