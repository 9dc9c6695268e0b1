"""Expand a whole model: stock layers become rep blocks.

A block takes the place of its stock layer by a change of class, in the same object: the attributes that the host
attached to it (`i`, `f`, `type`, `np`, hooks, a second reference to a shared layer) stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolorep import model_yaml
from yolorep.blocks.conv_c3 import Conv_C3, excited
from yolorep.blocks.registry import block_of, check_options
from yolorep.blocks.site import Site
from yolorep.blocks.zero_start import silence_
from yolorep.classifier_head import pool_and_classify_
from yolorep.errors import BlockError, HostError
from yolorep.host import unwrapped
from yolorep.stock_layers import Select, chosen, is_stock_conv, listed, nothing_to_expand, stock_convs

Model = TypeVar("Model", bound=nn.Module)
PLAIN = "plain"


@torch.inference_mode(False)  # what is made in that mode could never be trained
def expand(
    model: Model, block: str = "repvgg", *, identity: str = "auto", select: Select = None, inplace: bool = False
) -> Model:
    """Give the stock convolutions of a host's model extra branches; the model computes what it did before.

    model: a model of ultralytics or YOLOv5, not fused. block, identity: as for `Conv_C3`.
    select: which convolutions: name patterns (`"model.4.*"`), layer indices, or a function of (name, module). By
        default every one that gains from it: odd kernels above 1x1, and 1x1 whose input can be added to the output.
    inplace: change `model` itself. By default a copy is changed, and `model` stays as it is.

    The request is written to `model.yaml`, if there is one, so that a host that rebuilds the model gets it again.

    Raises:
        BlockError: unknown block or identity, or a selected layer beside which the branches do not fit.
        HostError: already expanded, or no convolution to expand: not a host's model, fused, or none selected.
    """
    check_options(block, identity)
    model = model if inplace else deepcopy(model)
    core = unwrapped(model)
    named = list(stock_convs(core))
    if not named:
        raise nothing_to_expand(core)
    if (getattr(core, "yaml", None) or {}).get("rep") is not None:
        raise HostError(f"{type(core).__name__} is already expanded, by {core.yaml['rep']}; deploy() it first")  # type: ignore
    layers = chosen(named, select, block, identity)
    grow_(layers, model_yaml.Options(block, identity), silent=True)
    _write_policy(core, block, identity, select, [name for name, _ in layers])
    return model


def grow_(layers: Iterable[tuple[str, nn.Module]], options: model_yaml.Options, *, silent: bool) -> None:
    """Turn stock layers into `Conv_C3` in place; all of them or, on an error, none.

    silent: start with branches that add nothing (for a trained layer), else as freshly initialized ones.

    Raises:
        BlockError: the branches do not fit beside a layer; the message begins with its name.
    """
    block, declared = block_of(options.block), []
    for name, layer in layers:
        try:
            branches = block.branches(Site(layer.conv, layer.bn, options.identity))  # type: ignore[arg-type]
            if silent:
                silence_(branches, layer.bn.running_mean, layer.bn.running_var)  # type: ignore[arg-type, union-attr]
        except BlockError as error:
            raise BlockError(f"{name}: {error}") from None
        declared.append((layer, branches))
    for layer, branches in declared:
        if options.se:
            _excite_(layer)
        if options.block == PLAIN:
            continue
        layer.stock_class = type(layer)  # type: ignore[assignment]
        layer.__class__ = Conv_C3
        layer.attach_(branches, options.block, options.identity, block.law)  # type: ignore[operator]


def _excite_(layer: nn.Module) -> None:
    weight: Tensor = layer.conv.weight  # type: ignore[assignment, union-attr]
    squeeze = excited(layer.act, weight.shape[0])  # type: ignore[arg-type]
    layer.act = squeeze.to(device=weight.device, dtype=weight.dtype).train(layer.training)


def grow_planned_(layers: nn.Sequential, plan: model_yaml.Plan) -> None:
    """Grow what a model YAML asks for on the layers that a host built from its stand-in, freshly initialized.

    Raises:
        BlockError: a row or the policy asks for branches that do not fit; the message names the layer.
    """
    for index, (name, options) in plan.rows.items():
        layer = layers[index]
        if name == model_yaml.FC:
            pool_and_classify_(layer)
            continue
        if name != "Conv_C3":
            for bottleneck in (m for m in layer.modules() if _is_bottleneck(m)):
                _resize_(bottleneck, options.k)
        inside = "*m.*" if name == "C3Rep" else "*"
        asked = [(f"model.{index}.{n}".rstrip("."), m) for n, m in stock_convs(layer) if fnmatchcase(n, inside)]
        grow_(asked, options, silent=False)
    if plan.policy is not None:
        grow_policy_(layers, plan.policy, silent=False)
    for layer in layers:
        if hasattr(layer, "np"):
            layer.np = sum(p.numel() for p in layer.parameters())  # type: ignore[assignment]


def grow_policy_(layers: nn.Sequential, policy: model_yaml.Options, *, silent: bool) -> None:
    """Grow what a policy asks for on those of a model's layers that are stock. Raises BlockError as `chosen`."""
    named = [(f"model.{name}", layer) for name, layer in stock_convs(layers)]
    grow_(chosen(named, policy.select, policy.block, policy.identity), policy, silent=silent)


def _write_policy(model: nn.Module, block: str, identity: str, select: Select, names: list[str]) -> None:
    yaml = getattr(model, "yaml", None)
    if isinstance(yaml, dict):
        policy = {"block": block, "identity": identity}
        if select is not None:
            policy["select"] = names if callable(select) else listed(select)  # type: ignore[assignment]
        model.yaml = {**yaml, "rep": policy}  # type: ignore[assignment]


def _is_bottleneck(module: nn.Module) -> bool:
    parts = (getattr(module, name, module) for name in ("cv1", "cv2"))
    return type(module).__name__ == "Bottleneck" and all(is_stock_conv(part) for part in parts)


def _resize_(bottleneck: nn.Module, sizes: tuple[int, int]) -> None:
    layers: Any = (bottleneck.cv1, bottleneck.cv2)
    for layer, size in zip(layers, sizes, strict=True):
        old = layer.conv
        if old.kernel_size != (size, size):
            channels = old.in_channels, old.out_channels
            layer.conv = nn.Conv2d(*channels, size, old.stride, size // 2, groups=old.groups, bias=False)
