"""Reads yolorep's docstrings for the API reference: `name: description.` becomes a list of parameters or attributes.

The docstrings name parameters in prose, several to a line. mkdocstrings knows Google's sections, so each paragraph that
begins with parameters is rewritten into one. Names are taken as such only where the function, or the class, has them.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Docstring, Extension, Function

START = re.compile(r"(?:^|(?<=[.:] ))(\w+(?:, \w+)*): (?=\S)", re.MULTILINE)

EXAMPLE = re.compile(r"^Example:(?=\n\s+>>>)", re.MULTILINE)


class Parameters(Extension):
    """Rewrites docstrings as they are collected."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Functions and methods: their parameters."""
        _rewrite(func.docstring, {p.name for p in func.parameters}, "Args")

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Classes: the parameters of `__init__`, or the fields of a dataclass."""
        init = cls.members.get("__init__")
        if isinstance(init, Function):
            _rewrite(cls.docstring, {p.name for p in init.parameters}, "Args")
        else:
            _rewrite(cls.docstring, set(cls.attributes), "Attributes")


def _rewrite(docstring: Docstring | None, names: set[str], title: str) -> None:
    if docstring is None:
        return
    paragraphs = EXAMPLE.sub("Examples:", docstring.value).split("\n\n")
    rewritten = [_section(paragraph, names, title) for paragraph in paragraphs]
    docstring.value = "\n\n".join(part for parts in rewritten for part in parts)


def _section(paragraph: str, names: set[str], title: str) -> list[str]:
    """A paragraph as it is, or as text before the first parameter and a section of parameters."""
    starts = [m for m in START.finditer(paragraph) if names.issuperset(m[1].split(", "))]
    if not starts or "\n" not in f"\n{paragraph}"[: starts[0].start() + 1]:
        return [paragraph]
    ends = [*(m.start() for m in starts[1:]), len(paragraph)]
    lines = [f"{title}:"]
    for start, end in zip(starts, ends, strict=True):
        text = " ".join(paragraph[start.end() : end].split())
        lines += [f"    {name}: {text}" for name in start[1].split(", ")]
    before = paragraph[: starts[0].start()].strip()
    return [*([before] if before else []), "\n".join(lines)]
