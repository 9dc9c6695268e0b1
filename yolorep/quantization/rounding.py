"""Fake quantization of a folded network, for training: its convolutions read rounded inputs and rounded weights.

y = conv(q8(x), q8(W)) + b, in float. q8 rounds to 8 bits, per tensor with a zero point for x and per output channel for
W, and passes gradients straight through (Jacob et al., arXiv 1712.05877).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
INPUT = "input_rounding"  # the module of a layer that rounds its input


def round_(network: nn.Module) -> list[str]:
    """Have the learned convolutions of a network compute with 8 bits, in place; return their names.

    A convolution of one output channel without a bias decodes the distribution of a box edge, and is left alone.
    """
    names = [name for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS) and _learned(layer)]
    for name in names:
        layer: Any = network.get_submodule(name)
        layer.add_module(INPUT, _input_rounding())
        layer.register_forward_pre_hook(_with_rounded_input)
        parametrize.register_parametrization(layer, "weight", _weight_rounding(layer))
    return names


def unround_(network: nn.Module) -> None:
    """Undo `round_` in place. The weights that were trained stay, unrounded."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight") and hasattr(layer, INPUT):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            delattr(layer, INPUT)
            for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _with_rounded_input]:
                del layer._forward_pre_hooks[key]


def _learned(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return layer.out_channels > 1 or layer.bias is not None


def _with_rounded_input(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return layer.input_rounding(inputs[0]), *inputs[1:]


def _input_rounding() -> nn.Module:
    """Return a rounding to 256 steps between moving averages of the smallest and the largest value."""
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    made: nn.Module = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)
    return made


def _weight_rounding(layer: nn.Module) -> nn.Module:
    """Return a symmetric rounding with a scale for each output channel, which follows the weights at every step."""
    from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

    made: nn.Module = FakeQuantize(
        MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,  # the range of the present weights alone
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=1 if isinstance(layer, nn.ConvTranspose2d) else 0,
    )
    return made
