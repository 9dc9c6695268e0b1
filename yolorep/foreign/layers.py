"""Write linear layers of other projects as layers of torch and yolorep, which the fold knows.

The written layers share their tensors with the originals and are only read. A class that happens to have a known name
does no harm: each fold is checked on noise before it replaces anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.algebra import Kernel
from yolorep.blocks.linear import BNPad2d
from yolorep.errors import FoldError
from yolorep.folding import kernel_of

LAYERS: dict[str, Callable[[Any], nn.Module]] = {}
# Children of a convolution + batch norm layer in the order in which every project runs them.
CONV_PARTS = ("conv", "bn", "aa", "act", "nonlinear")


def layer(*names: str) -> Callable[[Callable[[Any], nn.Module]], Callable[[Any], nn.Module]]:
    """Register a function that writes the layers of these class names."""

    def register(written: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
        LAYERS.update(dict.fromkeys(names, written))
        return written

    return register


def linear(module: nn.Module) -> nn.Module:
    """Return `module` as layers that `kernel_of` knows; layers of torch and yolorep unchanged.

    Raises:
        FoldError: it has the name of a known layer but not its attributes.
    """
    name = type(module).__name__
    try:
        if name in LAYERS:
            return LAYERS[name](module)
    except AttributeError as error:
        raise FoldError(f"{name} is not the layer known by that name: {error}") from None
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return sequence(dict(module._modules))  # type: ignore[arg-type]  # a layer that stands twice, twice
    return module


def sequence(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return the named layers one after the other, each written by `linear`."""
    return nn.Sequential(OrderedDict(written(layers)))


def written(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return each layer as `linear` writes it; errors name the layer."""
    result = {}
    for name, module in layers.items():
        try:
            result[name] = linear(module)
        except FoldError as error:
            raise error.within(name) from None
    return result


def convolution(weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> nn.Conv2d:
    """Return a convolution with the given weight, (out, in // groups, kh, kw), and geometry."""
    out, per_group, height, width = weight.shape
    channels = per_group * geometry.get("groups", 1), out
    conv = nn.Conv2d(*channels, (height, width), bias=bias is not None, device="meta", **geometry)
    conv.weight = nn.Parameter(weight.detach())
    conv.bias = None if bias is None else nn.Parameter(bias.detach())
    return conv


def gains(values: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Return y = values * x + bias, one value per channel."""
    return convolution(values.reshape(-1, 1, 1, 1), None if bias is None else bias.flatten(), groups=values.numel())


def geometry(module: Any) -> dict[str, Any]:
    """Return the convolution arguments that a module keeps as attributes of the same names."""
    return {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}


@layer("Conv", "DWConv", "ConvModule", "ConvBN", "ConvNormAct", "ConvBnAct")
def _conv_norm(module: Any) -> nn.Module:
    """A convolution, its batch norm and any layers after them, which must be identities to fold."""
    children = dict(module.named_children())
    unknown = children.keys() - set(CONV_PARTS)
    if unknown:
        raise FoldError(f"{type(module).__name__} has a layer {min(unknown)!r} beside {', '.join(CONV_PARTS)}")
    return sequence({name: children[name] for name in CONV_PARTS if name in children})


@layer("BatchNormAct2d")
def _norm_act(module: Any) -> nn.Module:
    """timm's layer of batch norm, drop and activation."""
    norm = copy(module)
    norm.__class__ = nn.BatchNorm2d
    return sequence({"norm": norm, "drop": module.drop, "act": module.act})


@layer("BNAndPadLayer")
def _norm_and_pad(module: Any) -> nn.Module:
    """The padding batch norm of the Diverse Branch Block."""
    return BNPad2d(module.bn, module.pad_pixels)


@layer("IdentityBasedConv1x1")
def _identity_based(module: Any) -> nn.Module:
    """The Diverse Branch Block's 1x1 convolution, learned as a difference from the identity."""
    return convolution(module.weight + module.id_tensor.to(module.weight), groups=module.groups)


@layer("OREPA_3x3_RepConv", "OREPA_3x3_RepVGG")
def _generated(module: Any) -> nn.Module:
    """OREPA: one convolution with a weight that the module generates from its parameters, and one batch norm."""
    conv = convolution(module.weight_gen(), **geometry(module))
    return sequence({"conv": conv, "bn": module.bn, "nonlinear": module.nonlinear})


@layer("LayerScale2d")
def _layer_scale(module: Any) -> nn.Module:
    return gains(module.gamma)


@layer("ImplicitA")
def _implicit_addition(module: Any) -> nn.Module:
    """Implicit knowledge (arXiv 2105.04206) that is added."""
    return gains(torch.ones_like(module.implicit), module.implicit)


@layer("ImplicitM")
def _implicit_multiplication(module: Any) -> nn.Module:
    """Implicit knowledge that is multiplied with."""
    return gains(module.implicit)


@kernel_of.register
def _(module: nn.ZeroPad2d) -> Kernel:
    """Zero padding of the same width on both sides, or, where it is negative, cropping."""
    left, right, top, bottom = module.padding
    if (left, top) != (right, bottom):
        raise FoldError(f"ZeroPad2d{tuple(module.padding)} pads the two sides of an axis differently")
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return Kernel(one, one.new_zeros(1), padding=(top, left), groups=0)
