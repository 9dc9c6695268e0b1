"""Constants of the 1x1 kernels of `csla` and `repopt` that a file gives, one for each output channel of each layer.

In a model YAML they stand as values, `rep_scales: {file: csla.pt, layers: {model.1: [0.4, ...]}}`, so that a checkpoint
goes on with them where the file is gone. `file` is a name for messages and records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolorep.blocks.csla import SMALL
from yolorep.blocks.linear import FixedScale
from yolorep.blocks.registry import Block
from yolorep.blocks.site import Site
from yolorep.errors import BlockError, first_and_more

SCALES, OPTION = "rep_scales", "scales"
CONSTANT = ("repopt", "csla")  # blocks with constants, unless they are learned
LIKE = "a file of the same layers, such as the checkpoint of the same model trained with rep='csla(scales=learned)'"


@dataclass(frozen=True)
class GivenScales:
    """layers: by name in the model, one constant above 0 for each output channel."""

    file: str
    layers: Mapping[str, list[float]]

    @classmethod
    def of(cls, d: Mapping[str, Any]) -> GivenScales | None:
        """Return the constants in a model dictionary; None if it has none.

        Raises:
            BlockError: they are no lists of numbers by layer.
        """
        given = d.get(SCALES)
        if given is None:
            return None
        if not isinstance(given, dict) or given.keys() != {"file", "layers"}:
            raise BlockError(f"{SCALES} is not accepted; accepted: {{file: NAME, layers: {{LAYER: [NUMBER, ...]}}}}")
        return cls.made(str(given["file"]), given["layers"])

    @classmethod
    def made(cls, file: str, layers: Any) -> GivenScales:
        """Return the constants of a mapping from layers to lists of numbers.

        Raises:
            BlockError: a value is none.
        """
        if not isinstance(layers, dict) or not layers:
            raise BlockError(f"{OPTION}: {file} holds no layers; accepted: lists of numbers by name of the layer")
        for name, values in layers.items():
            if not isinstance(name, str) or not isinstance(values, list) or not all(map(_is_constant, values)):
                raise BlockError(f"{OPTION}: {file}: {name}: accepted is a list of numbers above 0, one a channel")
        return cls(file, {name: [float(value) for value in values] for name, values in layers.items()})

    def to_yaml(self) -> dict[str, Any]:
        """Return the value of the `rep_scales:` key."""
        return {"file": self.file, "layers": dict(self.layers)}

    def check(self, names: Iterable[str]) -> None:
        """Check that the model has every layer that has constants. names: of the layers that the request means.

        Raises:
            BlockError: it lacks one.
        """
        more = sorted(self.layers.keys() - set(names))
        if more:
            raise BlockError(
                f"{OPTION}: {self.file} has scales of {first_and_more(more)}, which takes none; accepted: {LIKE}"
            )

    @torch.no_grad()
    def use_(self, name: str, branches: Mapping[str, nn.Module]) -> None:
        """Write the constants of a layer into the branches that are declared beside it; a 1x1 layer has none.

        Raises:
            BlockError: there are none for this layer, or for another number of channels, or the block has no constants.
        """
        if SMALL not in branches:
            return
        scale = getattr(branches[SMALL], "scale", None)
        if not isinstance(scale, FixedScale):
            raise BlockError(f"{OPTION} is for blocks with constants; accepted: {', '.join(CONSTANT)}")
        values, weight = self.layers.get(name), scale.weight
        if values is None or len(values) != len(weight):
            has = "no scales" if values is None else f"scales of {len(values)} channels"
            raise BlockError(f"{OPTION}: {self.file} has {has} for its {len(weight)} channels; accepted: {LIKE}")
        weight.copy_(torch.tensor(values, dtype=torch.float64))


def declared(block: Block, site: Site, name: str, scales: GivenScales | None) -> dict[str, nn.Module]:
    """Return the branches of a block beside a layer of a host's model, with the layer's constants if there are any.

    Raises:
        BlockError: they do not fit the site, or the constants do not.
    """
    branches = block.branches(site, of_host=True)
    if scales is not None:
        scales.use_(name, branches)
    return branches


def _is_constant(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
