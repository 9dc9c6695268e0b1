"""Recognize a layer that overrides what its type computes."""

from __future__ import annotations

from torch import nn

# Methods that decide what a module computes. A Sequential runs the layers that it iterates over.
COMPUTING = ("forward", "_conv_forward", "__call__", "_call_impl", "_wrapped_call_impl", "__iter__")


def overridden(module: nn.Module, known: type) -> str:
    """Return the method that `module` or its class overrides and that the `known` layer type computes with, or ''."""
    for name in COMPUTING:
        if name in vars(module) or getattr(type(module), name, None) is not getattr(known, name, None):
            return name
    return ""
