"""The source distribution and the wheel hold everything, and what the package index shows has links that work there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from docs.examples import ROOT

NOT_SHIPPED = (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml")  # for a checkout alone
READMES = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
BUILD = "import sys; out = sys.argv[1]; from setuptools import build_meta as b; b.build_sdist(out); b.build_wheel(out)"
LINK = re.compile(r"\]\((?!#)([^)\s]+)\)")
REPOSITORY = re.compile(
    r"https://(?:github\.com/yolorep/yolorep/blob|raw\.githubusercontent\.com/yolorep/yolorep)/main/([^#]+)"
)
SITE = re.compile(r"https://yolorep\.github\.io/yolorep/([^#]*)")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that a fresh checkout has."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of files to compare with")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    copy = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Names of the files in the source distribution and in the wheel."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=committed, capture_output=True, check=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        source = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        wheel = set(archive.namelist())
    return source, wheel


def _files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(("build/", "yolorep.egg-info/"))}


def test_sdist_holds_every_file_of_a_checkout(committed: Path, built: tuple[set[str], set[str]]) -> None:
    missing = {name for name in _files(committed) - built[0] if not name.startswith(NOT_SHIPPED)}
    assert missing == set()


def test_wheel_holds_every_module_and_every_data_file(committed: Path, built: tuple[set[str], set[str]]) -> None:
    package = {f"yolorep/{name}" for name in _files(committed / "yolorep") if "__pycache__" not in name}
    data = {f"yolorep/{room}/{name}" for room in ("models_yaml", "patches") for name in _files(committed / room)}
    assert (package | data) - built[1] == set()
    assert {name.partition("/")[0] for name in built[1] if ".dist-info/" not in name} == {"yolorep"}


@pytest.mark.parametrize("name", READMES)
def test_links_work_on_the_package_index(name: str) -> None:
    """They are absolute, and what they name in the repository and on the site is there."""
    for link in LINK.findall((ROOT / name).read_text()):
        assert link.startswith("https://"), f"{name}: {link} is relative"
        if found := REPOSITORY.match(link):
            assert (ROOT / found[1]).exists(), f"{name}: {link}"
        if found := SITE.match(link):
            page = found[1].strip("/")
            assert any((ROOT / "docs" / p).is_file() for p in (f"{page}.md", f"{page}/index.md".lstrip("/"))), (
                f"{name}: {link}"
            )
