"""What MkDocs does beyond Markdown: screens of commands, recorded outputs, formulas, and the language of a page."""

from __future__ import annotations

import html
import logging
import re
from functools import cache
from typing import Any

from examples import Example, examples, to_run  # this folder, which MkDocs puts on the path

log = logging.getLogger("mkdocs.hooks.yolorep")
SHORT = 14  # lines of output that are shown without a click
SCREEN = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
HOST_HELP = "    Arguments received: "  # where ultralytics' own help begins
COMMANDS = "<!-- every command -->"
BETWEEN = re.compile("(?<=[\u3000-\u303f\uff00-\uffef\u4e00-\u9fff])\n(?=[\u4e00-\u9fff])")  # Chinese lines
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
OUTPUT = {"en": "Output", "zh": "输出"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what commands print: `console` blocks by running them, other blocks from the tests' recordings."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, every_command())
    lines = markdown.splitlines()
    for example in reversed(list(examples(markdown))):
        if example.language == "console":
            lines[example.start : example.end] = screen(example)
        elif example.recording.is_file():
            lines[example.end : example.end] = recorded(example, OUTPUT[language(page)])
        elif example in to_run(markdown):
            log.info(f"{page.file.src_uri}:{example.start + 1}: no recorded output; run `pytest tests/docs` first")
    return BETWEEN.sub("", "\n".join(lines))  # a line break would be shown as a space


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw without a script or a font of ours."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")

    return FORMULA.sub(formula, content)


def on_page_context(context: Any, page: Any, config: Any, **_: Any) -> Any:
    """Show the theme's own words in the language of the page."""
    config.theme["language"] = language(page)
    return context


def language(page: Any) -> str:
    """`en`, or `zh` for the pages below docs/zh."""
    return "zh" if page.file.src_uri.startswith("zh/") else "en"


def screen(example: Example) -> list[str]:
    """A `console` block with the output of each of its `$ yolorep ...` lines below the line."""
    lines = ["```console"]
    for line in example.code.splitlines():
        lines.append(line)
        if line.startswith("$ yolorep"):
            lines += printed(line.removeprefix("$ yolorep").strip()).splitlines()
    return [*lines, "```"]


@cache
def printed(arguments: str) -> str:
    """What `yolorep ARGUMENTS` prints, without what a host adds.

    Raises:
        SystemExit: the command fails, so that a page that names an option of the past is noticed.
    """
    from typer.testing import CliRunner

    from yolorep.cli import app

    name, *_ = arguments.split()
    if name not in commands():
        log.info(f"`yolorep {name}` is not a command of this version; its help is left out")
        return "(not in this version)"
    result = CliRunner(env=SCREEN).invoke(app, arguments.split(), prog_name="yolorep")
    if result.exit_code:
        raise SystemExit(f"docs: `yolorep {arguments}` ended with exit code {result.exit_code}:\n{result.output}")
    text = result.output.partition(HOST_HELP)[0]
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def commands() -> dict[str, Any]:
    """The registered commands by name."""
    from typer.main import get_command

    from yolorep.cli import app

    return get_command(app).commands  # type: ignore[attr-defined]


def every_command() -> str:
    """One section for each registered command, with its help."""
    sections = []
    for name, command in sorted(commands().items()):
        if command.add_help_option:
            text = f"```console\n$ yolorep {name} --help\n```"
        else:
            text = f"{command.help}\n\n    yolorep {name} ARG=VALUE ..."
        sections.append(f"## {name}\n\n{text}")
    return "\n\n".join(sections)


def recorded(example: Example, title: str) -> list[str]:
    """The output of a block as the tests recorded it: open if it is short, folded if it is long."""
    lines = example.recording.read_text().splitlines()
    if not lines:
        return []
    if len(lines) <= SHORT:
        return ["", f'```text title="{title}"', *lines, "```"]
    return ["", f'??? quote "{title}"', "", *(f"    {line}" for line in ["```text", *lines, "```"])]
