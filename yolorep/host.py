"""A host's whole model: what it may be wrapped in, whose it is, and which rep blocks are its own."""

from __future__ import annotations

from torch import nn

from yolorep import model_yaml
from yolorep.errors import HostError

# (module, class) of the rep blocks that ultralytics builds, and whose branches its own `fuse` adds up.
OWN_BLOCKS = {("ultralytics.nn.modules.conv", "RepConv"), ("ultralytics.nn.modules.block", "RepVGGDW")}


def unwrapped(model: nn.Module) -> nn.Module:
    """The host's model inside `torch.compile`, data parallelism or ultralytics' `YOLO`; else `model` itself.

    Raises:
        HostError: `YOLO` was given an exported file, which it runs as it is.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    if type(model).__name__ == "OptimizedModule":  # by name: torch imports its compiler only where it is used
        return unwrapped(model._orig_mod)  # type: ignore[arg-type]
    if any(kind.__module__ == "ultralytics.engine.model" for kind in type(model).__mro__):
        if not isinstance(model.model, nn.Module):
            raise HostError(
                f"{model.model} is an exported model, without layers; accepted: a checkpoint (.pt) or a YAML"
            )
        return model.model
    return model


def of_ultralytics(model: nn.Module) -> bool:
    """Whether this is, by its class, a whole model of ultralytics, not one of its layers."""
    return any(kind.__module__ == "ultralytics.nn.tasks" for kind in type(model).__mro__)


def dialect_of(model: nn.Module) -> model_yaml.Dialect:
    """How the model's host writes its YAML."""
    return model_yaml.ULTRALYTICS if of_ultralytics(model) else model_yaml.YOLOV5


def own_blocks(model: nn.Module) -> list[nn.Module]:
    """The rep blocks that are stock, with the branches that they have: ultralytics' own, in a model of its own."""
    if not of_ultralytics(model):
        return []
    return [m for m in model.modules() if is_own_block(m)]


def is_own_block(module: nn.Module) -> bool:
    """Whether a layer is, by its class, a rep block that ultralytics builds."""
    return (type(module).__module__, type(module).__name__) in OWN_BLOCKS
