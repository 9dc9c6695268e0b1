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
    imported = json.loads(run_python(code, fresh=True))
    assert "yolorep" in imported
    assert not set(imported) & set(HEAVY)


@pytest.mark.parametrize("order", ["yolorep, ultralytics.nn.tasks", "ultralytics.nn.tasks, yolorep"])
def test_hosts_are_hooked_whichever_is_imported_first(order: str) -> None:
    pytest.importorskip("ultralytics")
    code = f"import {order}\nprint(yolorep.hosts.attached())"
    assert run_python(code, fresh=True) == "['ultralytics.nn.tasks']\n"


def test_a_hooked_host_imports_what_it_imports_alone() -> None:
    """torchvision takes seconds, and once it is imported, ultralytics' NMS is torchvision's."""
    pytest.importorskip("ultralytics")
    code = "import sys\nfrom ultralytics import YOLO\nYOLO({!r})\nprint(' '.join({!r} & set(sys.modules)))"
    heavy = {"torchvision", "matplotlib", "pandas", "torch._dynamo"}
    alone = set(run_python(code.format("yolov8n.yaml", heavy), fresh=True).split())
    hooked = run_python("import yolorep\n" + code.format("yolov5n-rep.yaml", heavy), fresh=True)
    assert set(hooked.split()) == alone


def test_public_names_are_there() -> None:
    import yolorep

    for name in ("fold", "expand", "deploy", "verify", "Conv_C3", "Bottleneck", "C3", "YolorepError", "__version__"):
        assert name in yolorep.__all__ or hasattr(yolorep, name), name
    assert all(hasattr(yolorep, name) for name in yolorep.__all__)
