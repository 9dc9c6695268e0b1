"""CUDA graphs: record the kernels of a call once and replay them without the launch gaps between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP_CALLS = 3  # as torch's documentation asks: cuDNN chooses its algorithms and allocates workspaces before capture


def captured(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Capture `call` on the current CUDA device; returns the replay and the static output that each replay rewrites.

    call: takes no arguments, reads static tensors and does not synchronize with the host. Gradients that it creates
    must be None before, so that they are allocated in the memory pool of the graph.

    Raises:
        RuntimeError: `call` does something that a graph cannot hold, such as copying to the host.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output
