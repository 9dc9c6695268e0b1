"""Every `bash` and `python` block of the documentation and of both READMEs runs, on tiny data, in a reader's order."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.examples import ROOT, RUN, Example, examples, to_run
from tests.docs.commands import command_lines, run_script, run_shell, small

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "zh" not in path.relative_to(ROOT).parts)
ENGLISH = [ROOT / "README.md", *PAGES]
CHINESE = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs" / "zh").rglob("*.md"))]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in ENGLISH if to_run(page.read_text())], ids=_name)
def test_page_runs(page: Path, workshop: Path) -> None:
    """In a folder that holds what the page's reader has: images, a data.yaml, weights, a trained checkpoint."""
    for example in to_run(page.read_text()):
        _run(example, f"{_name(page)}:{example.start + 1}", workshop)


def _run(example: Example, where: str, folder: Path) -> None:
    printed = []
    if example.language == "python":
        commands = [(example.code, run_script)]
    else:
        commands = [(line, run_shell) for line in command_lines(example.code)]
    for index, (command, run) in enumerate(commands):
        expected = example.exit if index == len(commands) - 1 else 0
        code, output = run(small(command), folder)
        assert code == expected, f"{where}: exit code {code}, not {expected}, from\n{command}\n{output[-4000:]}"
        assert "Traceback" not in output, f"{where}: {command}\n{output[-4000:]}"
        printed.append(output)
    text = "\n".join(filter(None, printed))
    print(f"--- {where}\n{example.code}--- prints\n{text}\n")
    example.recording.parent.mkdir(parents=True, exist_ok=True)
    example.recording.write_text(text)


@pytest.mark.parametrize("page", CHINESE, ids=_name)
def test_chinese_pages_show_the_examples_of_the_english_ones(page: Path) -> None:
    """Their blocks are not run again: each must be a block of an English page, which is run."""
    run = {(e.language, e.code) for english in ENGLISH for e in examples(english.read_text())}
    shown = [e for e in examples(page.read_text()) if e.language in RUN]
    assert [e.code for e in shown if (e.language, e.code) not in run] == []


def test_skipped_examples_are_few_and_say_why() -> None:
    skipped = {e.skip for page in ENGLISH for e in examples(page.read_text()) if e.skip}
    print("\n".join(sorted(skipped)))
    assert all(len(reason) > 8 for reason in skipped)
