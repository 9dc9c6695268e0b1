"""`import yolorep` is light, and enough for a host imported later or earlier."""

from __future__ import annotations

import json

import pytest

from tests.helpers import run_python

HEAVY = ("ultralytics", "models", "yolov5", "torchvision", "matplotlib", "cv2", "rich", "typer", "pandas")


def test_import_brings_no_host_and_nothing_heavy() -> None:
    """Neither does building and folding a layer."""
    code = """
import json, sys, torch
before = set(sys.modules)
import yolorep
module = yolorep.C3(8, 8).eval()
module._switch_to_deploy()
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    imported = json.loads(run_python(code))
    assert "yolorep" in imported
    assert not set(imported) & set(HEAVY)


@pytest.mark.parametrize("order", ["yolorep, ultralytics.nn.tasks", "ultralytics.nn.tasks, yolorep"])
def test_hosts_are_hooked_whichever_is_imported_first(order: str) -> None:
    pytest.importorskip("ultralytics")
    assert run_python(f"import {order}\nprint(yolorep.hosts.attached())") == "['ultralytics.nn.tasks']\n"


def test_public_names_are_there() -> None:
    import yolorep

    for name in ("fold", "expand", "deploy", "verify", "Conv_C3", "Bottleneck", "C3", "YolorepError", "__version__"):
        assert name in yolorep.__all__ or hasattr(yolorep, name), name
    assert all(hasattr(yolorep, name) for name in yolorep.__all__)
