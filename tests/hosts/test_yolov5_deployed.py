"""A checkpoint deployed from the published YOLOv5 package is a stock one where yolorep is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.helpers import run_python
from tests.hosts.yolov5_helpers import needs_package
from tests.processes import yolorep

pytestmark = needs_package

DESCRIBE = """
import sys
from yolorep.hosts.yolov5.compat import make_runnable  # so that the package runs at all on the libraries of today
make_runnable()
from yolorep import hosts
hosts.uninstall()
for name in [n for n in sys.modules if n.partition(".")[0] == "yolorep"]:
    sys.modules[name] = None  # as where it is not installed
import collections, io, json, onnx, thop, torch
from yolov5.models.experimental import attempt_load
result = []
for file in sys.argv[1:]:
    model = attempt_load(file, fuse=False).float()
    described = {
        "state": [[k, list(v.shape)] for k, v in model.state_dict().items()],
        "kinds": collections.Counter(type(m).__name__ for m in model.modules()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "names": model.names,
        "stride": model.stride.tolist(),
        "rows": model.yaml["backbone"] + model.yaml["head"],
    }
    x = torch.zeros(1, 3, 64, 64)
    described["flops"] = thop.profile(__import__("copy").deepcopy(model), inputs=(x,), verbose=False)[0]
    model.fuse()
    described["norms"] = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    model.model[-1].export = True
    graph = io.BytesIO()
    torch.onnx.export(model, (x,), graph, dynamo=False)
    described["operators"] = collections.Counter(n.op_type for n in onnx.load_from_string(graph.getvalue()).graph.node)
    result.append(described)
print(json.dumps(result))
"""
BUILD = """
import sys, torch
from yolorep.hosts.yolov5.compat import make_runnable
make_runnable()
from yolov5.models.yolo import Model
from yolorep.hosts.shipped import find_yaml
from tests.helpers import randomize_
for yaml, file in (("yolov5n-rep.yaml", "rep.pt"), (sys.argv[1], "stock.pt")):
    model = randomize_(Model(find_yaml(yaml), nc=3))
    model.names = ["red", "green", "blue"]
    torch.save({"epoch": 7, "model": model.half(), "ema": None, "opt": {"imgsz": 64}, "date": "today"}, file)
"""


def test_yolov5_deployed_checkpoint_is_stock(tmp_path: Path) -> None:
    from importlib.util import find_spec

    stock_yaml = Path(find_spec("yolov5").origin).parent / "models" / "yolov5n.yaml"  # type: ignore[union-attr, arg-type]
    run_python(BUILD, stock_yaml, cwd=tmp_path)
    assert "28 blocks folded" in yolorep("deploy", "rep.pt", "deployed.pt", cwd=tmp_path)
    ours, stock = json.loads(run_python(DESCRIBE, "deployed.pt", "stock.pt", cwd=tmp_path).splitlines()[-1])
    assert len(stock["state"]) == 349
    assert stock["norms"] == 0
    for what in stock:
        assert ours[what] == stock[what], what
    assert not [n for n in torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "deployed.pt") if "rep" in n]
