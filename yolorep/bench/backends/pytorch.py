"""Run a model with PyTorch: eager, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from yolorep.bench.backends.job import Job, Running, copy_, tensors
from yolorep.bench.cuda_graphs import captured
from yolorep.bench.measure import in_layout_


def run_eager(
    job: Job,
    *,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    change: Callable[[nn.Module], Any] = lambda model: model,
) -> Running:
    """Run with PyTorch. change: applied to the placed model."""
    placed = in_layout_(job.model.to(job.device, dtype), layout)
    x = job.images.to(job.device, dtype, memory_format=layout)
    model = change(placed)
    return Running(lambda: model(x), tensors, lambda images: copy_(x, images))


def run_cuda_graph(job: Job, dtype: torch.dtype = torch.float32) -> Running:
    """Capture the eager call as a CUDA graph and replay it."""
    running = run_eager(job, dtype=dtype, layout=torch.channels_last)
    replay, output = captured(running.call)

    def call() -> Any:
        replay()
        return output

    return Running(call, running.outputs, running.load)


def run_compile(job: Job) -> Running:
    """Run what `torch.compile` makes of the model, for one shape."""
    running = run_eager(job, layout=torch.channels_last, change=lambda model: torch.compile(model, dynamic=False))
    running.call()  # compiles
    return running
