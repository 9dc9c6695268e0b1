"""Train the branches of a block in one step that keeps no more activations than a plain convolution.

For y = BN(conv(x)) + sum of branches, autograd keeps the input of every batch norm: for RepVGG a third more than for a
plain convolution. `joint_sum` computes identities and cheap branches again from x in the backward pass, since x is kept
anyway. Outputs, gradients, running statistics, parameters and buffers equal the separate form's, which takes
over wherever `joint_sum` does not apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.linear import ChannelMap
from yolorep.training.joint_step import Geometry, Running, Term, normalized_sum
from yolorep.training.onednn_overread import overread

CHEAP = 1 / 8  # of the dense convolution's work: a branch of at most this share is computed again, not kept
WORTHWHILE = 2**18  # values of x: below, the step's own overhead outweighs a memory that hardly matters
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WIDE = (torch.float32, torch.float64)


class Part(NamedTuple):
    """A branch BN(layer(x)), or BN(x) without a layer."""

    layer: nn.Conv2d | ChannelMap | None
    norm: _BatchNorm

    @property
    def frozen(self) -> bool:
        """Whether the batch norm normalizes by its running statistics instead of the batch's."""
        return not self.norm.training and self.norm.running_mean is not None

    @property
    def geometry(self) -> Geometry | None:
        layer: Any = self.layer
        if layer is None:
            return None
        if isinstance(layer, nn.Conv2d):
            return Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
        stride = (layer.stride,) * 2 if isinstance(layer.stride, int) else layer.stride
        return Geometry(stride, (0, 0), (1, 1), layer.groups)

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return (out, h', w') of the layer's output for x (batch, in, h, w)."""
        if self.layer is None or self.geometry is None:
            return tuple(x.shape[1:])
        out, _, *kernel = self.layer.weight.shape
        axes = zip(x.shape[2:], kernel, *self.geometry[:3], strict=True)
        return out, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    def term(self, dense: nn.Conv2d, dtype: torch.dtype) -> Term:
        """Return the branch as tensors, its convolution in `dtype`; counts the batch where statistics are tracked."""
        layer, norm = self.layer, self.norm
        kernel, bias = (None, None) if layer is None else (layer.weight.to(dtype), getattr(layer, "bias", None))
        return Term(
            kernel,
            None if bias is None else bias.to(dtype),
            norm.weight,
            norm.bias,
            self._running(),
            norm.eps,
            self.frozen,
            kernel is not None and kernel.numel() > CHEAP * dense.weight.numel(),
            self.geometry,
        )

    def _running(self) -> Running | None:
        norm = self.norm
        if norm.running_mean is None or norm.running_var is None:
            return None
        if self.frozen:
            return Running(norm.running_mean, norm.running_var, 0.0)
        if not norm.track_running_stats:
            return None
        momentum = norm.momentum or 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:  # the mean of all batches
                momentum = 1.0 / float(norm.num_batches_tracked)
        return Running(norm.running_mean, norm.running_var, momentum)


def joint_sum(conv: nn.Conv2d, bn: _BatchNorm, branches: Iterable[nn.Module], x: Tensor) -> Tensor | None:
    """Return bn(conv(x)) + sum of branch(x), (batch, in, h, w) to (batch, out, h', w'), or None if `fits` says no.

    The joint step covers convolutions, channel maps and identities that have a batch norm each, with at least one of
    them beside the dense convolution. Branches of other kinds are added as they are. The result can be differentiated
    once; a second derivative raises torch's error for it.
    """
    every = [(branch, part_of(branch)) for branch in branches]
    dense, extra = _part(conv, bn), [part for _, part in every if part is not None]
    if dense is None or not extra or not fits([dense, *extra], x):
        return None
    dtype = compute_dtype(x)
    y = normalized_sum([part.term(conv, dtype) for part in (dense, *extra)], x.to(dtype))
    for branch, known in every:
        y = y if known is not None else y + branch(x)
    return y


def pays(x: Tensor) -> bool:
    """Return whether the joint step is the better form for x by default: on a CPU, for a large x.

    A GPU runs small networks at the rate at which kernels are launched, and the joint step launches as many as the
    separate form while it computes more; `Conv_C3.joint = True` asks for it where memory is short.
    """
    return x.device.type == "cpu" and x.numel() >= WORTHWHILE


def part_of(branch: nn.Module) -> Part | None:
    """Return a branch as layer and batch norm if it computes exactly what its types say, else None."""
    if not _is_plain(branch, nn.Sequential):
        return _part(None, branch)
    layers: list[Any] = list(branch._modules.values())  # `children` passes over a repeated layer
    return _part(*layers) if len(layers) == 2 else None


def fits(parts: Sequence[Part], x: Tensor) -> bool:
    """Return whether the joint step gives what the separate form gives for these branches of x.

    It does not if a compiler, a tracer, a function transform or global module hooks see the separate operations, if the
    batch norms communicate with other processes, or if shapes and dtypes do not match.
    """
    if observed(x) or module_hooks._has_any_global_hook():
        return False
    if x.dim() != 4 or x.device.type not in ("cpu", "cuda") or any(_is_shared(part.norm) for part in parts):
        return False
    if any(overread(part.layer, x) for part in parts):
        return False
    outputs = {part.output_shape(x) for part in parts}
    channels, *size = next(iter(outputs))
    alone = len(x) * size[0] * size[1] < 2  # no statistics: the separate form raises
    meet = len(outputs) == 1 and all(part.norm.num_features == channels for part in parts)
    return meet and not alone and _dtypes_meet(parts, x)


def observed(x: Tensor) -> bool:
    """Return whether a compiler, a tracer, a function transform or a tensor subclass sees the operations on x."""
    seen = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    return seen or type(x) not in (Tensor, nn.Parameter)


def _part(layer: nn.Module | None, norm: nn.Module) -> Part | None:
    if not _is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm):
        return None
    if layer is not None and not _is_plain(layer, nn.Conv2d, ChannelMap):
        return None
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        return None
    return Part(layer, norm)  # type: ignore[arg-type]


def _is_plain(module: nn.Module, *kinds: type) -> bool:
    """Return whether the type alone decides what the module computes: no subclass, hook or overridden forward."""
    own = vars(module)
    return type(module) in kinds and "forward" not in own and not any(own[name] for name in HOOKS)


def _is_shared(norm: _BatchNorm) -> bool:
    """Return whether the batch norm computes its statistics over several processes."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training or not dist.is_available():
        return False
    return dist.is_initialized() and dist.get_world_size(norm.process_group or dist.group.WORLD) > 1


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that convolutions of x compute in: autocast's, except for float64."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(kind)


def _dtypes_meet(parts: Sequence[Part], x: Tensor) -> bool:
    """Return whether all operations have one dtype, or a half dtype with batch norms in float32."""
    dtype = compute_dtype(x)
    cast = torch.is_autocast_enabled(x.device.type)
    for layer, norm in parts:
        same = x.dtype == dtype if layer is None else layer.weight.dtype in (dtype, torch.float32 if cast else dtype)
        values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        wide = dtype if dtype in WIDE else torch.float32
        if not same or any(value is not None and value.dtype != wide for value in values):
            return False
    return True
