"""Costs of the arms beside stock, interleaved: a training step, memory, and the deployed model's latency."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from yolorep.bench.timing import interleave
from yolorep.bench.whole_step import time_steps
from yolorep.compare.plan import STOCK, Plan
from yolorep.compare.starts import dense, is_trained, with_branches
from yolorep.deployment import deploy

ROUNDS = 11


@dataclass(frozen=True)
class Cost:
    """Ratios arm / stock, medians of interleaved rounds.

    step: time of a training step, without the host's loss. kept: bytes of activations kept for the backward pass.
    latency: of the deployed and fused model, one image. parameters: number while training.
    """

    step: float
    kept: float
    latency: float
    parameters: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def measure(plan: Plan, threads: int) -> dict[str, Cost]:
    """Return the cost of every arm of a plan, by its name.

    Raises:
        BlockError, HostError: an arm cannot be built.
    """
    from ultralytics import YOLO
    from ultralytics.utils.checks import check_imgsz

    first = plan.device.split(",")[0].strip()
    device = torch.device(f"cuda:{first}" if first.isdecimal() else first)
    torch.set_num_threads(threads)
    stock = dense(YOLO(plan.model), plan.data, 0)
    trained = is_trained(plan.model)
    models = {}
    for arm in plan.arms:
        model = deepcopy(stock) if arm.network is None else dense(YOLO(arm.network), plan.data, 0)
        # Without start `split`, which needs images, and costs what every start does.
        models[arm.name] = with_branches(model, arm.rep and {**arm.rep, "start": None}, trained=trained)
    for model in models.values():
        model.to(device).train()
    pixels = check_imgsz(plan.imgsz, stride=int(stock.stride.max()))  # ultralytics rounds up, and says so
    x = torch.rand(int(plan.train["batch"]), 3, pixels, pixels, device=device)
    timing, kept = time_steps(models, x, ROUNDS, torch.float16 if device.type == "cuda" else None)
    fused = {name: deploy(model.eval()).fuse(verbose=False) for name, model in models.items()}
    with torch.inference_mode():
        latency = interleave({name: partial(model, x[:1]) for name, model in fused.items()}, ROUNDS, device)
    return {
        name: Cost(
            timing.ratio(name, STOCK).median,
            kept[name] / kept[STOCK],
            latency.ratio(name, STOCK).median,
            sum(parameter.numel() for parameter in model.parameters()),
        )
        for name, model in models.items()
    }
