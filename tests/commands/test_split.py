"""A folder a class becomes train and val: every image once, each class by the same share, the same split again."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.processes import yolorep
from yolorep.commands.split import Counts, split_folder
from yolorep.errors import UsageError


def folder(path: Path, **classes: int) -> Path:
    """Files that are images by name, each with its own content, one of them in a folder of its own."""
    for name, count in classes.items():
        for index in range(count):
            file = path / name / ("more" if index == 0 else "") / f"{index}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {index}")
    return path


def files(path: Path) -> dict[str, str]:
    return {str(f.relative_to(path)): f.read_text() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("link", [False, True])
def test_split_places_every_image_once(link: bool, tmp_path: Path) -> None:
    source = folder(tmp_path / "in", cat=10, dog=25)
    before = files(source)
    counts = split_folder(source, tmp_path / "out", val=0.2, link=link)
    train, val = files(tmp_path / "out" / "train"), files(tmp_path / "out" / "val")
    assert counts == {"cat": Counts(8, 2), "dog": Counts(20, 5)}
    assert (len(train), len(val)) == (28, 7)
    assert train | val == before == files(source)
    links = [f.is_symlink() for f in (tmp_path / "out").rglob("*.jpg")]
    assert links == [link] * 35
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_split_is_the_same_for_the_same_seed_anywhere(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "a", cat=9, dog=9), folder(tmp_path / "b", cat=9, dog=9)
    parts = []
    for index, (source, seed) in enumerate(((one, 0), (other, 0), (one, 1))):
        split_folder(source, tmp_path / f"out{index}", val=0.4, seed=seed)
        parts.append(files(tmp_path / f"out{index}"))
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(("val", "expected"), [(0.01, Counts(1, 1)), (0.99, Counts(1, 1))])
def test_no_part_lacks_a_class(val: float, expected: Counts, tmp_path: Path) -> None:
    assert split_folder(folder(tmp_path / "in", a=2, b=2), tmp_path / "out", val=val)["a"] == expected


# (classes and images, output, share, what the error says)
REFUSED = {
    "no classes": ({}, "out", 0.2, "in holds no folder of a class; accepted"),
    "one class": ({"cat": 3}, "out", 0.2, "has one class, 'cat'; accepted: two or more"),
    "one image": ({"cat": 3, "dog": 1}, "out", 0.2, "dog has one image; accepted: two or more"),
    "split already": ({"train": 3, "val": 3}, "out", 0.2, "is split already, into train, val"),
    "output exists": ({"cat": 3, "dog": 3}, "", 0.2, "exists; choose the name of a new folder"),
    "output inside": ({"cat": 3, "dog": 3}, "in/out", 0.2, "is inside .*in, where it would be one more class"),
    "output nowhere": ({"cat": 3, "dog": 3}, "no/out", 0.2, "no is not a folder; create it first"),
    "output where no file can be": (
        {"cat": 3, "dog": 3},
        "/proc/zz",
        0.2,
        "cannot be split into /proc/zz: No such file",
    ),
    "no val": ({"cat": 3, "dog": 3}, "out", 0.0, "--val 0 leaves a part empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_split_refuses_and_writes_nothing(case: str, tmp_path: Path) -> None:
    classes, out, val, says = REFUSED[case]
    (tmp_path / "in").mkdir()
    source = folder(tmp_path / "in", **classes)
    with pytest.raises(UsageError, match=says):
        split_folder(source, tmp_path / out, val=val)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_empty_class_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (folder(tmp_path / "in", cat=3) / "dog").mkdir()
    with pytest.raises(UsageError, match=r"dog has no image .*accepted: two or more"):
        split_folder(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match="is not a folder; accepted: a folder that holds"):
        split_folder(tmp_path / "none", tmp_path / "out")


@pytest.mark.parametrize("fault", ["an image that is gone", "a full disk"])
def test_split_that_fails_on_the_way_leaves_nothing(fault: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "in", cat=9, dog=9)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "a full disk":
        (source / "dog" / "3.jpg").write_bytes(bytes(100_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    else:
        (source / "dog" / "x.jpg").symlink_to(tmp_path / "gone.jpg")
    says = "dog/x.jpg is a link to a file that does not exist"
    says = says if fault == "an image that is gone" else "in cannot be split into .*out: File too large .*dog"
    try:
        with pytest.raises(UsageError, match=says):
            split_folder(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_link_to_nothing_is_refused_when_linking_too(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", cat=9, dog=9)
    (source / "dog" / "x.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UsageError, match=r"x\.jpg is a link to a file that does not exist"):
        split_folder(source, tmp_path / "out", link=True)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("link", [False, True])
def test_a_loop_of_links_gives_no_image_twice(link: bool, tmp_path: Path) -> None:
    source = folder(tmp_path / "in", cat=4, dog=4)
    (source / "cat" / "again").symlink_to(source / "cat")
    (source / "dog" / "up").symlink_to(source / "dog" / "more")
    (source / "dog" / "other.jpg").symlink_to(source / "dog" / "1.jpg")
    assert split_folder(source, tmp_path / "out", val=0.5, link=link) == {"cat": Counts(2, 2), "dog": Counts(2, 2)}
    contents = sorted(files(tmp_path / "out").values())
    assert contents == sorted(f"{name} {index}" for name in ("cat", "dog") for index in range(4))


def test_a_link_to_a_folder_of_images_is_a_class(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", cat=4)
    (source / "dog").symlink_to(folder(tmp_path / "elsewhere", dog=4) / "dog")
    assert split_folder(source, tmp_path / "out", val=0.5)["dog"] == Counts(2, 2)


def test_folders_of_programs_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in", cat=4, dog=4, **{".ipynb_checkpoints": 3, "__MACOSX": 3})
    folder(source, **{"cat/.ipynb_checkpoints": 2})
    (source / "cat" / "._1.jpg").write_text("of a Mac")
    assert split_folder(source, tmp_path / "out", val=0.5) == {"cat": Counts(2, 2), "dog": Counts(2, 2)}
    assert "left out .ipynb_checkpoints, __MACOSX" in capsys.readouterr().err


def test_files_that_are_no_image_of_a_class_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in", a=2, b=2)
    split_folder(source, tmp_path / "whole")
    assert not capsys.readouterr().err
    (source / "loose.jpg").touch()
    (source / ".DS_Store").touch()
    for index in range(6):
        (source / "b" / f"{index}.txt").touch()
    assert split_folder(source, tmp_path / "out") == {"a": Counts(1, 1), "b": Counts(1, 1)}
    names = "b/0.txt, b/1.txt, b/2.txt, b/3.txt, b/4.txt and 2 more"
    assert f"{source}: left out {names}: not an image in a folder of a class\n" in capsys.readouterr().err


def test_command_tells_the_counts_and_what_is_wrong(tmp_path: Path) -> None:
    folder(tmp_path / "in", cat=5, dog=10)
    printed = yolorep("split", "in", "out", "--val", "0.4", "--seed", "3", cwd=tmp_path)
    assert printed.splitlines()[-2:] == ["cat: 3 train, 2 val", "dog: 6 train, 4 val"]
    assert "yolorep: out exists" in yolorep("split", "in", "out", cwd=tmp_path, code=2)
