"""When hooks are attached: whatever is imported first, and not to modules that only share a host's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import run_python

UTILS = {"general": "intersect_dicts", "torch_utils": "smart_optimizer"}
YOLO = """
from utils import general, torch_utils
class BaseModel:
    def fuse(self): return self
class Conv: pass
def parse_model(d, ch): return d
def check_yaml(file): return file
"""
REPORT = """
import sys
sys.path.insert(0, "")
{imports}
from yolorep import hosts
print(hosts.attached(), [hasattr(f, "__yolorep_original__") for f in (yolo.parse_model, yolo.BaseModel.fuse)])
"""
ORDERS = {
    "before": ("", "", "import yolorep; import models.yolo as yolo"),
    "after": ("", "", "import models.yolo as yolo; import yolorep"),
    "during, first": ("import yolorep", "", "import models.yolo as yolo"),
    "during, last": ("", "import yolorep", "import models.yolo as yolo"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_hooks_attach_in_any_order_of_imports(order: str, tmp_path: Path) -> None:
    first, last, imports = ORDERS[order]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "yolo.py").write_text(f"{first}\n{YOLO}\n{last}\n")
    (tmp_path / "utils").mkdir()
    for name, function in UTILS.items():
        (tmp_path / "utils" / f"{name}.py").write_text(f"def {function}(*arguments): pass")
    assert run_python(REPORT.format(imports=imports), cwd=tmp_path) == "['models.yolo'] [True, True]\n"


def test_a_module_that_only_shares_a_hosts_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "yolo.py").write_text("class BaseModel:\n    fuse = parse_model = None\nparse = print\n")
    code = "import sys; sys.path.insert(0, ''); import yolorep, models.yolo; print(yolorep.hosts.attached())"
    assert run_python(code, cwd=tmp_path) == "[]\n"
