"""Training in several processes, which talk through gloo: the blocks alone, and both hosts by their own launch."""

from __future__ import annotations

import copy
import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import ROOT, assert_same
from tests.hosts.yolov5_helpers import needs_package
from tests.processes import LAUNCH, NO_NETWORK, run
from yolorep.blocks import BLOCKS, Conv_C3
from yolorep.stock_layers import rep_blocks
from yolorep.training import joint

PROCESSES = 2
ROWS = 28  # blocks of yolov5n-rep.yaml
CPU_AS_GPUS = ROOT / "benchmarks" / "cpu_as_gpus"


def every_block() -> nn.Sequential:
    """A block of every name and of every kind of identity branch, one after the other."""
    torch.manual_seed(0)
    kept = [Conv_C3(8, 8, block=name) for name in sorted(BLOCKS)]
    changed = [Conv_C3(8, 16, s=2, identity=kind) for kind in ("conv", "average", "select", "interpolate")]
    return nn.Sequential(*kept, changed[0], Conv_C3(16, 8, 1), *(nn.Sequential(c, Conv_C3(16, 8)) for c in changed[1:]))


def train(model: nn.Module, images: Tensor, steps: int = 2) -> list[str]:
    """A few steps; the parameters that had no gradient in one of them."""
    optimizer, idle = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), set()
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        idle |= {name for name, value in model.named_parameters() if value.grad is None}
        optimizer.step()
    return sorted(idle)


def images_of(rank: int | None = None) -> Tensor:
    """(4, 8, 16, 16) for each process, or all of them together."""
    every = torch.rand(PROCESSES * 4, 8, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    return every if rank is None else every[rank * 4 : rank * 4 + 4]


def one_of_the_processes(rank: int, folder: Path) -> None:
    """Train every block in each way in which the hosts do, and leave behind what came of it."""
    torch.set_num_threads(1)
    joint.WORTHWHILE = 0
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    found: dict[str, Any] = {}
    for way in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        model = every_block().double()
        idle = train(DistributedDataParallel(model, **way), images_of(rank))
        found["".join(way)] = model.state_dict(), idle
    runpy.run_path(str(CPU_AS_GPUS / "sitecustomize.py"))  # SyncBatchNorm runs on GPUs only
    model = nn.SyncBatchNorm.convert_sync_batchnorm(every_block().double())
    idle = train(DistributedDataParallel(model), images_of(rank))
    found["synchronized"] = model.state_dict(), idle
    torch.save({"ways": found, "converted": model}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes has left behind."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(one_of_the_processes, (folder,), PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("way", ["", "find_unused_parameters", "static_graph", "synchronized"])
def test_blocks_stay_in_step(trained: list[dict[str, Any]], way: str) -> None:
    (first, idle), (second, _) = (found["ways"][way] for found in trained)
    assert idle == []  # or a plain DistributedDataParallel would not go on
    names = [name for name, _ in every_block().named_parameters()]
    assert [name for name in names if not torch.equal(first[name], second[name])] == []
    statistics = [name for name in first if "running_" in name]
    same = [name for name in statistics if torch.equal(first[name], second[name])]
    assert same == (statistics if way == "synchronized" else [])


def test_synchronized_batch_norms_see_all_processes_and_fold(
    trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "WORTHWHILE", 0)
    alone = every_block().double()
    train(alone, images_of())  # all images in one process: what synchronization stands for
    state, _ = trained[0]["ways"]["synchronized"]
    wrong = [name for name, value in alone.state_dict().items() if not torch.allclose(value, state[name], 1e-9, 1e-9)]
    assert wrong == []
    converted = trained[0]["converted"].eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.modules())
    deployed = copy.deepcopy(converted)
    for block in deployed.modules():
        if isinstance(block, Conv_C3):
            block._switch_to_deploy()
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in deployed.modules())
    with torch.no_grad():
        assert_same(converted(images_of(0)), deployed(images_of(0)))


# In each process of a host: the model inside DistributedDataParallel, as it is when the process ends.
WATCH = """
import atexit, os, runpy, wrapt
runpy.run_path(os.environ["STAND_IN"])

def watch(torch):
    def keep(init, module, args, kwargs):
        init(*args, **kwargs)
        atexit.register(lambda: torch.save(module.module, os.path.join(os.environ["LEFT"], os.environ["RANK"] + ".pt")))
    wrapt.wrap_function_wrapper(torch.nn.parallel, "DistributedDataParallel.__init__", keep)

wrapt.register_post_import_hook(watch, "torch")
"""
TORCHRUN = """
import runpy
sys.argv[0] = "torchrun"
runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
"""


def launch(folder: Path, python: str, *arguments: object) -> tuple[str, list[nn.Module]]:
    """What a host's launch prints, and the model that each of its processes has ended with."""
    (folder / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join((str(folder), str(ROOT)))
    stand_in = str(CPU_AS_GPUS / "sitecustomize.py")
    env = {"PYTHONPATH": path, "STAND_IN": stand_in, "LEFT": str(folder), "GLOO_SOCKET_IFNAME": "lo"}
    printed = run(NO_NETWORK + python, *arguments, cwd=folder, fresh=True, **env)
    return printed, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def assert_in_step(models: list[nn.Module], blocks: int = ROWS) -> None:
    """The same parameters in every process, those of the branches among them."""
    assert [len(rep_blocks(model)) for model in models] == [blocks] * PROCESSES
    first, second = (dict(model.named_parameters()) for model in models)
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_ultralytics_processes_know_a_shipped_yaml(tiny_dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    options = {"model": "yolov5n-rep.yaml", "data": tiny_dataset, "imgsz": 64, "batch": 4, "nbs": 4, "epochs": 1}
    options |= {"device": "0,1", "workers": 0, "plots": False, "project": tmp_path, "name": "run"}
    printed, models = launch(tmp_path, LAUNCH, "train", *(f"{key}={value}" for key, value in options.items()))
    assert "torch.distributed.run --nproc_per_node 2" in printed
    assert_in_step(models)


def test_ultralytics_processes_mask_the_same_steps(tiny_dataset: Path, tmp_path: Path) -> None:
    """Gradients are averaged, kernels are not: a process without the masks would go another way."""
    pytest.importorskip("ultralytics")
    options = {"model": "yolov5n.yaml", "rep": "repopt", "data": tiny_dataset, "imgsz": 64, "batch": 4, "nbs": 4}
    options |= {"epochs": 1, "device": "0,1", "workers": 0, "plots": False, "project": tmp_path, "name": "run"}
    options |= {"optimizer": "SGD", "warmup_epochs": 0}
    printed, models = launch(tmp_path, LAUNCH, "train", *(f"{key}={value}" for key, value in options.items()))
    assert printed.count("by masks; every checkpoint is stock") == 1  # told by the first process
    assert_in_step(models, blocks=0)


@needs_package
def test_yolov5_processes_know_a_shipped_yaml_and_fold_synchronized_batch_norms(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    options = ["--cfg", "yolov5n-rep.yaml", "--weights", "", "--data", tiny_dataset, "--epochs", "1", "--img", "64"]
    options += ["--batch", "4", "--workers", "0", "--device", "0,1", "--noplots", "--noautoanchor", "--sync-bn"]
    launcher = ["--standalone", "--nproc-per-node", PROCESSES, "-m", "yolorep", "yolov5", "train.py"]
    printed, models = launch(tmp_path, TORCHRUN, *launcher, *options, "--project", tmp_path, "--name", "run")
    assert "Using SyncBatchNorm()" in printed
    assert_in_step(models)
    # While it trains, and fused for the last validation: then those of stock YOLOv5n.
    summaries = re.findall(r"YOLOv5n-rep summary: (\d+) layers, (\d+) parameters", printed)
    assert summaries[-1] == ("157", "1761871")
