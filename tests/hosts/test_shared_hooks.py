"""What the hosts' hooks share: a YAML file that is read on a host's behalf."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolorep import HostError
from yolorep.hosts.shared_hooks import read_yaml


def test_read_yaml_gives_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_bytes(b"names: {0: a}  # \xff is of no encoding\n")
    assert read_yaml(tmp_path / "data.yaml", "a data YAML") == {"names": {0: "a"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("train: [\n", r"data.yaml is not YAML: while parsing a flow node .*data.yaml\", line 2, column 1$"),
        ("- train\n", r"data.yaml is not a data YAML: accepted is a mapping$"),
        ("", r"data.yaml is not a data YAML: accepted is a mapping$"),
    ],
)
def test_read_yaml_refuses_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(content)
    with pytest.raises(HostError, match=says) as caught:
        read_yaml(file, "a data YAML: accepted is a mapping")
    assert "\n" not in str(caught.value)
