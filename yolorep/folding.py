"""Fold any nest of linear layers into one `nn.Conv2d`, by dispatch on the layer's type.

The arithmetic is done in float64 on the module's device and cast once at the end, so that a deep nest in half precision
loses no more than its result does. `@kernel_of.register` adds a layer type.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from yolorep.algebra import Kernel, Moments, add, as_pair
from yolorep.composition import compose, on_one_device
from yolorep.errors import FoldError
from yolorep.overrides import overridden
from yolorep.precision import cast, exact


def fold(module: nn.Module) -> nn.Conv2d:
    """Return one convolution that computes exactly what `module` computes in eval mode.

    module: a Conv2d, a batch norm, or any nest of linear layers (see `kernel_of`) that maps
        (batch, in, height, width) to (batch, out, height', width').

    The result has a bias, is in eval mode, and has the dtype, device, memory format and `requires_grad` of the module's
    largest convolution. `module` is not changed.

    Raises:
        FoldError: `module` is in training mode where that matters, is not linear, is not one convolution at the border,
            or has a layer with forward hooks or an overridden forward; the message begins with the path of that layer.

    Example:
        >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> x = torch.rand(1, 3, 8, 8)
        >>> torch.allclose(fold(module)(x), module(x), atol=1e-5)
        True
    """
    try:
        return to_conv(_layer_kernel(module), like=_reference(module))
    except RecursionError:
        raise FoldError(f"{type(module).__name__} is nested too deeply for Python's recursion limit") from None


@torch.inference_mode(False)  # tensors made in inference mode could never be trained
def to_conv(kernel: Kernel, like: Tensor | None = None) -> nn.Conv2d:
    """Return `kernel` as an `nn.Conv2d` with the dtype, device, memory format and `requires_grad` of the weight `like`.

    Raises:
        FoldError: the kernel is defined for any number of channels, or overflows the dtype.
    """
    if not kernel.groups:
        raise FoldError("the number of channels is unknown: nothing here has a weight")
    like = kernel.weight.float() if like is None else like
    conv = nn.Conv2d(
        kernel.in_channels,
        kernel.out_channels,
        kernel.size,
        stride=kernel.stride,
        padding=kernel.padding,
        dilation=kernel.dilation,
        groups=kernel.groups,
        padding_mode=kernel.padding_mode,  # type: ignore[arg-type]
        device="meta",
    )
    conv.weight = nn.Parameter(cast(kernel.weight, like), requires_grad=like.requires_grad)
    conv.bias = nn.Parameter(cast(kernel.bias, like), requires_grad=like.requires_grad)
    return conv.eval()


@singledispatch
def kernel_of(module: nn.Module) -> Kernel:
    """Return the kernel of a layer or of a nest of layers of the types registered below and in `yolorep.blocks`."""
    known = sorted(t.__name__ for t in kernel_of.registry if t is not object)
    raise FoldError(f"{type(module).__name__} is not a linear layer that folds; accepted: {', '.join(known)}")


@kernel_of.register
def _(module: nn.Conv2d) -> Kernel:
    if module.weight.is_complex():
        raise FoldError(f"{type(module).__name__} has complex weights; accepted: real ones")
    weight = module.weight if module.weight.device.type != "mps" else exact(module.weight)
    bias = exact(weight.new_zeros(module.out_channels) if module.bias is None else module.bias)
    return Kernel(
        weight,
        bias,
        stride=as_pair(module.stride),
        padding=_conv_padding(module),
        dilation=as_pair(module.dilation),
        groups=module.groups,
        padding_mode=module.padding_mode,
    )


@kernel_of.register(nn.SyncBatchNorm)
@kernel_of.register(nn.BatchNorm2d)
def _(module: nn.BatchNorm2d | nn.SyncBatchNorm) -> Kernel:
    """y = (x - mean) / sqrt(var + eps) * gamma + beta, one pointwise filter a channel."""
    if module.training:
        raise FoldError(f"{type(module).__name__} is in training mode; call .eval() first")
    if module.running_mean is None or module.running_var is None:
        raise FoldError(f"{type(module).__name__} keeps no running statistics (track_running_stats=False)")
    mean, var = exact(module.running_mean), exact(module.running_var)
    gamma = torch.ones_like(mean) if module.weight is None else exact(module.weight)
    beta = torch.zeros_like(mean) if module.bias is None else exact(module.bias)
    scale = gamma / torch.sqrt(var + module.eps)
    return Kernel(
        scale.reshape(-1, 1, 1, 1),
        beta - mean * scale,
        groups=module.num_features,
        moments=Moments(beta, scale.square() * var),
    )


@kernel_of.register
def _(module: nn.Identity) -> Kernel:
    return Kernel(torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), groups=0)


@kernel_of.register(nn.Dropout)
@kernel_of.register(nn.Dropout2d)
def _(module: nn.Module) -> Kernel:
    if module.training:
        raise FoldError(f"{type(module).__name__} is in training mode; call .eval() first")
    return kernel_of(nn.Identity())


@kernel_of.register
def _(module: nn.AvgPool2d) -> Kernel:
    size, padding = as_pair(module.kernel_size), as_pair(module.padding)
    if module.ceil_mode:
        raise FoldError("AvgPool2d with ceil_mode=True averages fewer values at the border")
    if any(padding) and not module.count_include_pad:
        raise FoldError("AvgPool2d with padding and count_include_pad=False averages fewer values at the border")
    area = module.divisor_override or size[0] * size[1]
    return Kernel(
        torch.full((1, 1, *size), 1 / area, dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        stride=as_pair(module.stride),
        padding=padding,
        groups=0,
    )


@kernel_of.register
def _(module: nn.Sequential) -> Kernel:
    return chain_of(module._modules.items())  # type: ignore[arg-type]  # `named_children` passes over a repeated layer


def chain_of(layers: Iterable[tuple[str, nn.Module]]) -> Kernel:
    """Return the kernel of named layers one after the other; the identity if there are none."""
    kernels = _with_gains_applied(children_kernels(layers))
    if not kernels:
        return kernel_of(nn.Identity())
    result = kernels[0][1]
    for name, kernel in kernels[1:]:
        result = _followed(result, name, kernel)
    return result


def _followed(first: Kernel, name: str, second: Kernel) -> Kernel:
    """Return the kernel of the first and then the second layer; errors name the second."""
    try:
        return compose(*on_one_device(first, second))
    except FoldError as error:
        raise error.within(name) from None


def _with_gains_applied(kernels: list[tuple[str, Kernel]]) -> list[tuple[str, Kernel]]:
    """Return the chain with each gain (a scale, a batch norm) merged into the kernel before it, the smaller product."""
    result: list[tuple[str, Kernel]] = []
    for name, kernel in kernels:
        if result and kernel.is_gain:
            before, previous = result.pop()
            result.append((before, _followed(previous, name, kernel)))
        else:
            result.append((name, kernel))
    return result


def sum_of(branches: Iterable[tuple[str, nn.Module]]) -> Kernel:
    """Return the kernel of the sum of named branches."""
    return summed([kernel for _, kernel in children_kernels(branches)])


def summed(kernels: list[Kernel]) -> Kernel:
    """Return the sum of `kernels`, which are not used again; layers without tensors may be on another device."""
    if not kernels:
        raise FoldError("a sum with no branch has no output")
    first = next((k for k in kernels if k.groups), kernels[0])
    return add([on_one_device(first, kernel)[1] for kernel in kernels], overwrite=True)


def children_kernels(children: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, Kernel]]:
    """Return the kernel of each named child; errors name the child."""
    result = []
    for name, child in children:
        try:
            result.append((name, _layer_kernel(child)))
        except FoldError as error:
            raise error.within(name) from None
    return result


def _layer_kernel(module: nn.Module) -> Kernel:
    """Return the kernel of a layer after checking that the layer computes what its type says."""
    name = type(module).__name__
    known = next((kind for kind in type(module).__mro__ if kind in kernel_of.registry and kind is not object), None)
    own = "" if known is None else overridden(module, known)
    if own:
        raise FoldError(f"{name} is a {known.__name__} with a forward of its own ({own}), linear or not")  # type: ignore[union-attr]
    if _global_forward_hooks or _global_forward_pre_hooks:
        raise FoldError("a global forward hook is registered, which can change what each layer computes; remove it")
    if known is not None and (module._forward_hooks or module._forward_pre_hooks):
        raise FoldError(
            f"{name} has forward hooks, which can change what it computes; remove them first "
            "(prune.remove removes pruning's, remove_weight_norm the older weight_norm's)"
        )
    return kernel_of(module)


def _reference(module: nn.Module) -> Tensor | None:
    """Return the largest convolution's weight, whose dtype, device and memory format the result takes."""
    convs = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d)]
    if convs:
        return max(convs, key=Tensor.numel)
    return next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)


def _conv_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if not isinstance(conv.padding, str):
        return as_pair(conv.padding)
    total = [d * (k - 1) for d, k in zip(as_pair(conv.dilation), as_pair(conv.kernel_size), strict=True)]
    if any(t % 2 for t in total):
        raise FoldError(f"padding='same' pads an even kernel {tuple(conv.kernel_size)} unevenly")
    return total[0] // 2, total[1] // 2
