"""Present this CPU as two GPUs: with this folder in PYTHONPATH, a host's multi-GPU code runs unmodified on a CPU.

Both hosts ask torch for CUDA devices before they start several processes. With this module, torch reports two devices,
tensors sent to a device stay on the CPU, and the processes communicate through gloo. Python imports a module named
`sitecustomize` at startup, so child processes are covered too. It tests neither NCCL nor the speed of GPUs.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import wrapt

DEVICES = 2
PROPERTIES = SimpleNamespace(name="this CPU", total_memory=2**33, multi_processor_count=1, major=0, minor=0)


def stand_in(torch: ModuleType) -> None:
    """Replace the CUDA functions of torch that the hosts call."""
    for name, value in {"is_available": True, "device_count": DEVICES, "get_device_properties": PROPERTIES}.items():
        setattr(torch.cuda, name, answer(value))
    for name in ("set_device", "synchronize"):
        setattr(torch.cuda, name, answer(None))
    torch.cuda.current_device = answer(0)
    torch.accelerator.current_accelerator = answer(None)  # optimizers ask, for tensors on the CPU
    torch.distributed.is_nccl_available = answer(False)
    wrapt.wrap_function_wrapper(torch.nn.parallel, "DistributedDataParallel.__init__", without_devices)
    wrapt.wrap_function_wrapper(torch.distributed, "reduce", without_average)
    torch.nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = answer(None)  # refuses a CPU
    torch.nn.SyncBatchNorm.forward = synchronized
    stay(torch)


def answer(value: Any) -> Any:
    """Return a function that returns `value`."""
    return lambda *args, **kwargs: value


def stay(torch: ModuleType) -> None:
    """Replace the device argument 'cuda' of every torch function by 'cpu'."""
    from torch.overrides import TorchFunctionMode

    def here(value: Any) -> Any:
        asked = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
        return torch.device("cpu") if asked else value

    class Stay(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.device:  # a host reads the type of the device that it makes
                return function(*args, **(kwargs or {}))
            named = {name: here(value) for name, value in (kwargs or {}).items()}
            return function(*(here(value) for value in args), **named)

    Stay().__enter__()


def without_devices(init: Any, module: Any, args: Any, kwargs: Any) -> Any:
    """Drop the device arguments: DistributedDataParallel of a module on the CPU takes none."""
    return init(*args, **{**kwargs, "device_ids": None, "output_device": None})


def without_average(reduce: Any, module: Any, args: Any, kwargs: Any) -> Any:
    """Average by dividing a sum: gloo has no average."""
    from torch import distributed

    tensor, average = args[0], kwargs.get("op") == distributed.ReduceOp.AVG
    result = reduce(*args, **({**kwargs, "op": distributed.ReduceOp.SUM} if average else kwargs))
    if average:
        tensor /= distributed.get_world_size()
    return result


def synchronized(norm: Any, x: Any) -> Any:
    """Forward pass of SyncBatchNorm with batch statistics over all processes; torch's kernels are for GPUs only."""
    import torch
    from torch.distributed.nn.functional import all_reduce
    from torch.nn import functional as F

    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    count = all_reduce(torch.tensor(float(x.numel() // x.shape[1])))
    mean = all_reduce(x.sum((0, 2, 3))) / count
    var = all_reduce((x - mean[:, None, None]).square().sum((0, 2, 3))) / count
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * count / (count - 1), norm.momentum)
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    return x * scale[:, None, None] + (norm.bias - mean * scale)[:, None, None]


wrapt.register_post_import_hook(stand_in, "torch")
