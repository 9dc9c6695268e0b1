"""The notebook runs from its first cell to its last, and the web service of the documentation answers."""

from __future__ import annotations

import json
from pathlib import Path

from docs.examples import ROOT, to_run
from tests.docs.commands import run_script, run_shell, small
from tests.helpers import run_python

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# Each cell as a kernel runs it: the value of its last expression is shown.
KERNEL = """
import ast, json
for cell in json.load(open("cells.json")):
    tree, last = ast.parse(cell), None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, "cell", "exec"), globals())
    value = eval(compile(last, "cell", "eval"), globals()) if last is not None else None
    if value is not None:
        print(value)
"""
CALLS = """
from pathlib import Path
from fastapi.testclient import TestClient
import serve
client = TestClient(serve.app)
found = client.post("/detect", content=Path("images/val/0.png").read_bytes())
assert found.status_code == 200, found.text
assert found.json() and all(sorted(box) == ["box", "class", "confidence"] for box in found.json())
assert client.post("/detect", content=b"text").status_code == 415
import sys
print("yolorep" in sys.modules)
"""


def test_notebook_runs(workshop: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in notebook["cells"] if cell.get("outputs")] == []  # nothing of the writer's machine
    cells = [small("python", cell).replace(".train(", f".train(project={str(workshop / 'runs')!r}, ") for cell in cells]
    (workshop / "cells.json").write_text(json.dumps(cells))
    code, printed = run_script(KERNEL, workshop)
    assert code == 0, printed
    assert "no rep blocks" in printed
    assert "rep blocks, " in printed.split("Validating")[1]
    assert (workshop / "best-stock.pt").is_file()


def test_service_answers_without_yolorep(workshop: Path) -> None:
    deploys, serves = to_run((ROOT / "docs" / "serve.md").read_text())
    code, printed = run_shell(deploys.code.strip(), workshop)
    assert code == 0, printed
    (workshop / "serve.py").write_text(serves.code)
    assert run_python(CALLS, cwd=workshop).strip().endswith("False")
