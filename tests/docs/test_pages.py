"""Every `bash` and `python` block of the documentation and of both READMEs runs, on tiny data, in a reader's order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import ismodule
from pathlib import Path

import pytest

import yolorep
from docs.examples import ROOT, RUN, Example, examples, to_run
from tests.docs.commands import command_lines, run_script, run_shell, small

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "zh" not in path.relative_to(ROOT).parts)
# Commands of a host are run once, whichever page shows them again: nothing on a page depends on their results.
ONCE = re.compile(r"^(yolo|yolorep (train|val|predict|export|yolov5|bench)) ")
TRAINS = re.compile(r"^(yolo|yolorep|yolorep yolov5) train|\.train\(", re.MULTILINE)
ENGLISH = [ROOT / "README.md", *PAGES]
CHINESE = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs" / "zh").rglob("*.md"))]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def ran() -> dict[str, str]:
    """Commands of a host that ran already, and what they printed."""
    return {}


@pytest.mark.parametrize("page", [page for page in ENGLISH if to_run(page.read_text())], ids=_name)
def test_page_runs(page: Path, workshop: Path, ran: dict[str, str]) -> None:
    """In a folder that holds what the page's reader has: images, a data.yaml, weights, a trained checkpoint."""
    for example in to_run(page.read_text()):
        text = "\n".join(filter(None, _outputs(example, f"{_name(page)}:{example.start + 1}", workshop, ran)))
        example.recording.parent.mkdir(parents=True, exist_ok=True)
        example.recording.write_text(text)


def _outputs(example: Example, where: str, folder: Path, ran: dict[str, str]) -> Iterator[str]:
    """What each command of an example prints."""
    script = example.language == "python"
    commands = [example.code] if script else list(command_lines(example.code))
    for index, command in enumerate(commands):
        run = small(example.language, command)
        if run in ran:
            yield ran[run]
            continue
        before = _trained(folder)
        code, printed = run_script(run, folder) if script else run_shell(run, folder)
        print(f"--- {where}\n{command}\n--- prints\n{printed}\n")
        assert code == (example.exit if index == len(commands) - 1 else 0), f"{where}: exit code {code}: {command}"
        assert "Traceback" not in printed, f"{where}: {command}"
        if TRAINS.search(command) and not example.exit:
            assert _trained(folder) != before, f"{where}: nothing was trained by {command}"
        if ONCE.search(command):
            ran[run] = printed
        yield printed


def _trained(folder: Path) -> set[tuple[Path, int]]:
    """Every checkpoint of a training run, with the time at which it was written."""
    return {(file, file.stat().st_mtime_ns) for file in (folder / "runs").rglob("last.pt")}


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


def test_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text().splitlines()
    public = [name for name in yolorep.__all__ if not name.startswith("_") and not ismodule(getattr(yolorep, name))]
    assert [name for name in public if f"::: yolorep.{name}" not in page] == []
