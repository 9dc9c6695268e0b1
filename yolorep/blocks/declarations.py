"""Check what the declaration of a user's block returns, by folding it and running it beside the dense convolution.

A branch that is never added, is not linear or has another shape would show only after hours of training, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep.blocks.site import Site
from yolorep.errors import BlockError, DeclarationError, FoldError, YolorepError, first_line, line_in
from yolorep.folding import kernel_of, sum_of, to_conv
from yolorep.numerics import relative_error
from yolorep.precision import has_values

BRANCH, DENSE = "branch_", "dense_"
WITH_DENSE = ("sum", "online")  # the laws under which layers follow the convolution on its own path
TOLERANCE = 1e-8  # in float64
_checked: dict[tuple[Any, ...], str] = {}  # by geometry: what makes the deployed kernel larger than the dense one


def checked_layers(
    declare: Callable[..., Any], site: Site, name: str, law: str, *, of_host: bool = False
) -> dict[str, nn.Module]:
    """Return the layers that a declaration gives for a site, checked unless the block is yolorep's own.

    The same declaration is checked once for each geometry. of_host: the site is a layer of a host's model, which
    deploying restores, so that its kernel must keep its size.

    Raises:
        DeclarationError: they are not layers by name, have other names than `branch_*` and `dense_*`, do not fold, or
            give another shape than the dense convolution.
        BlockError: the declaration's own word that it does not fit the site, or a kernel that is too large for it.
    """
    function = declare.func if isinstance(declare, partial) else declare
    if function.__module__.startswith("yolorep."):
        return declare(site)
    try:
        layers = declare(site)
    except YolorepError:
        raise
    except Exception as error:  # a user's function
        where = line_in(error, getattr(getattr(function, "__code__", None), "co_filename", ""))
        raise DeclarationError(f"block {name!r}: its declaration raises {_told(error)}{where}") from error
    _check_names(layers, name, law)
    options = tuple(sorted(declare.keywords.items())) if isinstance(declare, partial) else ()
    dense = site.conv
    geometry = (dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding, dense.dilation)
    key = (function, str(options), *geometry, dense.groups, dense.padding_mode, site.identity)
    if key not in _checked and all(has_values(tensor) for tensor in dense.state_dict().values()):
        larger = [_check_branch(branch, layer, site, f"block {name!r}: {branch}") for branch, layer in layers.items()]
        _checked[key] = next(filter(None, larger), "")
    if of_host and _checked.get(key):
        raise BlockError(_checked[key])
    return layers


def _check_names(layers: Any, name: str, law: str) -> None:
    returns = f"block {name!r}: its declaration returns"
    accepts = "accepted: layers by name, such as {'branch_a': site.conv_bn(1, site.border)}"
    if not isinstance(layers, Mapping):
        kind = "None, as a function without return does" if layers is None else f"a {type(layers).__name__}"
        raise DeclarationError(f"{returns} {kind}; {accepts}")
    for key, layer in layers.items():
        if not isinstance(layer, nn.Module):
            raise DeclarationError(f"{returns} {type(layer).__name__} as {key!r}; {accepts}")
    accepted = (BRANCH, DENSE) if law in WITH_DENSE else (BRANCH,)
    for key in layers:
        if not isinstance(key, str) or not key.startswith(accepted) or not key.isidentifier() or key in accepted:
            names = " and ".join(f"{prefix}*" for prefix in accepted)
            raise DeclarationError(
                f"block {name!r}: {key!r} is no name of a branch; accepted with law {law!r}: {names}"
            )


def _check_branch(name: str, layer: nn.Module, site: Site, where: str) -> str:
    """Compare the branch, its fold and the dense convolution on noise of an odd and an even size.

    Returns:
        A sentence if the kernel of both is larger than the dense one, else an empty text.
    """
    on_dense_path = name.startswith(DENSE)
    layer, dense = _like_trained(layer), deepcopy(site.conv).cpu().double().eval()
    try:
        channels = site.conv.out_channels if on_dense_path else site.conv.in_channels
        conv = to_conv(kernel_of(layer).over(channels), like=dense.weight).eval()
    except FoldError as error:
        raise DeclarationError(f"{where} does not fold: {error}") from None
    x = _noise(site)
    with torch.no_grad():
        expected = dense(x)
        x = expected if on_dense_path else x
        try:
            got = layer(x)
        except Exception as error:  # a layer may raise anything on an input that it does not take
            raise DeclarationError(f"{where} cannot be run on {_shape(x)}: {_told(error)}") from None
        if not isinstance(got, Tensor) or got.shape != expected.shape:
            is_now = _shape(got) if isinstance(got, Tensor) else type(got).__name__
            raise DeclarationError(
                f"{where} gives {is_now} where the dense convolution gives {_shape(expected)} (stride "
                f"{site.conv.stride}, padding {site.conv.padding}); accepted: the same shape, as "
                "site.conv_bn(size, site.padding_of(size)) gives it"
            )
        if relative_error(got, conv(x)) > TOLERANCE:
            raise DeclarationError(f"{where} folds to another function than it computes; accepted: linear layers")
    return "" if on_dense_path else _too_large(dense, layer, where)


@torch.no_grad()
def _like_trained(layer: nn.Module) -> nn.Module:
    """Return a float64 copy in eval mode, its batch norms as after a training: fresh ones add no bias.

    Where a kernel with padding follows a bias, the branch is one convolution only as long as the bias is 0.
    """
    layer = deepcopy(layer).cpu().double().eval()
    random = torch.Generator().manual_seed(0)
    for norm in (module for module in layer.modules() if isinstance(module, _BatchNorm)):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if values is not None:
                values.copy_(torch.rand(values.shape, generator=random, dtype=torch.float64) + 0.5)
    return layer


def _too_large(dense: Any, branch: nn.Module, where: str) -> str:
    try:
        size = sum_of([("conv", dense), ("branch", branch)]).size
    except FoldError as error:
        raise DeclarationError(f"{where} does not fold with the dense convolution: {error}") from None
    if size == dense.kernel_size:
        return ""
    sizes = " kernel a ".join(f"{height}x{width}" for height, width in (dense.kernel_size, size))
    return (
        f"{where} makes the {sizes} one, so that deploying would not give the host's layer back; accepted: kernels "
        "up to the size of the dense one, or no branch"
    )


def _noise(site: Site) -> Tensor:
    """A batch of one, (1, in, h, w), one side odd and one even, large enough for the dilated kernel."""
    dense: Any = site.conv
    reach = max(d * (k - 1) + 1 for d, k in zip(dense.dilation, dense.kernel_size, strict=True))
    random = torch.Generator().manual_seed(0)
    return torch.randn(1, dense.in_channels, reach + 6, reach + 7, generator=random, dtype=torch.float64)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
