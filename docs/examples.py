"""The code blocks of a Markdown page: which are run by the tests, and where their recorded output is kept.

Every ``bash`` and ``python`` block is run. An HTML comment on the line before a block changes that:

    <!-- skip: needs a GPU -->     the block is not run, for this reason
    <!-- exit: 2 -->               the block's last command ends with this exit code instead of 0
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
RUN = ("bash", "python")
COMMENT = re.compile(r"<!--\s*(skip|exit):\s*(.+?)\s*-->\s*$")


@dataclass(frozen=True)
class Example:
    """One fenced block.

    start, end: its lines in the page, fences included, counted from 0; end is exclusive.
    skip: why it is not run; empty if it is. exit: the expected exit code.
    """

    language: str
    code: str
    start: int
    end: int
    skip: str = ""
    exit: int = 0

    @property
    def recording(self) -> Path:
        """The file that the tests write this block's output to, and that the site shows below the block."""
        folder = Path(os.environ.get("YOLOREP_DOCS_OUTPUT", ROOT / "build" / "docs-output"))
        name = hashlib.sha256(f"{self.language}\n{self.code}".encode()).hexdigest()[:16]
        return folder / f"{name}.txt"


def examples(markdown: str) -> Iterator[Example]:
    """Every fenced block of a page, in order, whether it is run or not."""
    comment = None
    for token in MarkdownIt().parse(markdown):
        if token.type == "html_block":
            comment = COMMENT.search(token.content.strip())
        elif token.type == "fence" and token.map is not None:
            said = {comment[1]: comment[2]} if comment else {}
            language = token.info.split()[0] if token.info.strip() else ""
            exit_code = int(said.get("exit", 0))
            yield Example(language, token.content, *token.map, skip=said.get("skip", ""), exit=exit_code)
            comment = None
        else:
            comment = None


def to_run(markdown: str) -> list[Example]:
    """The blocks that the tests run."""
    return [e for e in examples(markdown) if e.language in RUN and not e.skip]
