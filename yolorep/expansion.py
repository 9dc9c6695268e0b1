"""Expand a whole model: stock layers become rep blocks.

A block takes the place of its stock layer by a change of class, in the same object: the attributes that the host
attached to it (`i`, `f`, `type`, `np`, hooks, a second reference to a shared layer) stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3, excited
from yolorep.blocks.csla import kernel_scales
from yolorep.blocks.laws import MASK
from yolorep.blocks.registry import block_of, check_options
from yolorep.blocks.site import Site
from yolorep.blocks.starts import SPLIT, start_
from yolorep.classifier_head import pool_and_classify_
from yolorep.console import say_once
from yolorep.errors import BlockError, HostError
from yolorep.folding import sum_of, to_conv
from yolorep.given_scales import GivenScales, declared
from yolorep.host import unwrapped
from yolorep.model_copy import copied
from yolorep.model_yaml import FC, ROW_KINDS, Plan, earlier_line, without_earlier
from yolorep.placement import Layout, Select, chosen
from yolorep.policy import Policy, entries
from yolorep.sharing import share_
from yolorep.stock_layers import (
    StockConv,
    edited_layers,
    is_stock_conv,
    nothing_to_expand,
    rep_blocks,
    stock_convs,
)
from yolorep.training.kernel_scales import Scales

Model = TypeVar("Model", bound=nn.Module)
PLAIN = "plain"


@torch.inference_mode(False)  # tensors made in inference mode could never be trained
def expand(
    model: Model,
    block: str = "repvgg",
    *,
    identity: str = "auto",
    select: Select = None,
    start: str | None = None,
    images: Iterable[Tensor] | None = None,
    inplace: bool = False,
) -> Model:
    """Give the stock convolutions of a host's model extra branches; the function of the model stays the same.

    model: a model of ultralytics or YOLOv5, not fused. block, identity: as for `Conv_C3`.
    select: which convolutions: name patterns (`"model.4.*"`), layer indices, or a function of (name, module). By
        default all that gain from the block: odd kernels above 1x1, and 1x1 whose input can be added to the output.
        Presets (`yolorep.placement`) take those of a part: "backbone", "neck", "head", "bottlenecks", "3x3", or several
        words in one entry, "neck 3x3", for what all of them name.
    start: values of the branches before training: None or "silent" for branches that add nothing (None is "split" for
        `twin`). "even" and "paper"
        (`yolorep.blocks.starts`) change what the model computes, and are meant for training from scratch. "split"
        keeps it, and gives the branches parts of the trained kernels.
    images: for "split", batches as the model takes them, (batch, channels, height, width): batch norms of branches
        record the statistics of their inputs. 100 images of the training set are enough.
    inplace: change `model` itself. By default a copy is changed, and `model` stays as it is.

    The request is written to `model.yaml`, if there is one, so that a host that rebuilds the model applies it again.
    Constants in it (`yolorep.given_scales`) are those of blocks `csla` and `repopt`.

    Raises:
        BlockError: unknown block or identity, or a selected layer beside which the branches do not fit.
        HostError: already expanded, or no convolution to expand: not a host's model, fused, or none selected.

    Example:
        >>> from ultralytics.nn.tasks import DetectionModel
        >>> model = expand(DetectionModel("yolov5n.yaml", verbose=False), select=6)
        >>> model.yaml["rep"]
        {'block': 'repvgg', 'identity': 'auto', 'select': [6]}
    """
    check_options(block, identity)
    first = start or block_of(block).trained_start
    if images is not None and first != SPLIT:
        raise BlockError(f"images are for start={SPLIT!r}, which measures statistics on them; the start is {first!r}")
    model = model if inplace else copied(model)
    core = unwrapped(model)
    named = list(stock_convs(core))
    if not named:
        raise nothing_to_expand(core)
    yaml: Any = getattr(core, "yaml", None)
    if isinstance(yaml, dict) and yaml.get("rep") is not None:
        raise HostError(f"{type(core).__name__} is already expanded, by {yaml['rep']}; deploy() it first")
    _warn_of_edits(core)
    layers = chosen(named, select, block, identity, Layout.of(core, yaml))
    policy = Policy(block, identity, start=start)
    told = earlier_line(yaml) if isinstance(yaml, dict) else None
    if told is not None:
        say_once(told)
    yaml = without_earlier(yaml) if isinstance(yaml, dict) else None
    given = GivenScales.of(yaml) if yaml is not None else None
    grow_(layers, policy, trained=True, scales=given)
    if first == SPLIT:
        share_(core, layers, images)
    if yaml is not None:
        asked = tuple(name for name, _ in layers) if callable(select) else None if select is None else entries(select)
        core.yaml = {**yaml, "rep": replace(policy, select=asked).to_yaml()}  # type: ignore[assignment]
    return model


def _warn_of_edits(model: nn.Module) -> None:
    """Name the layers that are left alone because their class was edited."""
    for line in edited_layers(model):
        warnings.warn(f"left without branches: {line}", stacklevel=3)


def grow_(
    layers: Iterable[tuple[str, StockConv]], policy: Policy, *, trained: bool, scales: GivenScales | None = None
) -> None:
    """Turn stock layers into `Conv_C3` in place; all of them or, on an error, none.

    trained: whether the layers are trained, so that by default the branches start silent. scales: constants of their
        1x1 kernels; None for those of the block.

    Raises:
        BlockError: the branches do not fit beside a layer; the message begins with its name.
    """
    block, grown = block_of(policy.block), []
    start = policy.start or (block.trained_start if trained else "paper")
    layers = list(layers)
    if scales is not None:
        scales.check(name for name, _ in layers)
    for name, layer in layers:
        try:
            branches = declared(block, Site(layer.conv, layer.bn, policy.identity), name, scales)
            start_(start, branches, layer.bn)
        except BlockError as error:
            raise BlockError(f"{name}: {error}") from None
        grown.append((layer, branches))
    for layer, branches in grown:
        if policy.se:
            _excite_(layer)
        if block.law == MASK:
            _add_kernels_(layer, branches)
        elif policy.block != PLAIN:
            _become_block_(layer, branches, policy, block.law)


@torch.no_grad()
def _add_kernels_(layer: StockConv, branches: dict[str, nn.Module]) -> None:
    """Add the kernels of branches to the layer's own, so that it starts as their sum."""
    weight = layer.conv.weight
    weight.copy_(to_conv(sum_of([("conv", layer.conv), *branches.items()]), like=weight).weight)


def _become_block_(layer: Any, branches: dict[str, nn.Module], policy: Policy, law: str) -> None:
    layer.stock_class = type(layer)
    layer.__class__ = Conv_C3
    layer.attach_(branches, policy.block, policy.identity, law)


def _excite_(layer: StockConv) -> None:
    weight = layer.conv.weight
    squeeze = excited(layer.act, weight.shape[0])
    layer.act = squeeze.to(device=weight.device, dtype=weight.dtype).train(layer.training)


def grow_planned_(layers: nn.Sequential, plan: Plan) -> None:
    """Grow the blocks that a model YAML requests on the fresh layers that a host built from its stand-in.

    Raises:
        BlockError: a row or the policy requests branches that do not fit; the message names the layer.
        HostError: the convolutions that a row or the policy means are edited, so that none can have branches.
    """
    _warn_of_edits(layers)
    for index, (name, policy) in plan.rows.items():
        layer, kind = layers[index], ROW_KINDS[name]
        if name == FC:
            pool_and_classify_(layer)
            continue
        if kind.has_bottlenecks:
            for bottleneck in (m for m in layer.modules() if _is_bottleneck(m)):
                _resize_(bottleneck, policy.k)
        convs = [(f"model.{index}.{n}".rstrip("."), m) for n, m in stock_convs(layer) if fnmatchcase(n, kind.inside)]
        if not convs:
            raise HostError(f"row {index} ({name}): {nothing_to_expand(layer)}")
        grow_(convs, policy, trained=False)
    if plan.policy is not None:
        grow_policy_(layers, plan.policy, plan.stock, plan.scales)
    for layer in layers:
        if hasattr(layer, "np"):
            layer.np = sum(p.numel() for p in layer.parameters())  # type: ignore[assignment]


def grow_policy_(
    layers: nn.Sequential, policy: Policy, yaml: dict[str, Any], scales: GivenScales | None = None
) -> None:
    """Grow the branches that a policy requests on the stock layers of a freshly initialized model.

    yaml: the dictionary that the host built them from.

    Raises:
        BlockError: as `chosen`.
        HostError: there are none.
    """
    named = [(f"model.{name}", layer) for name, layer in stock_convs(layers)]
    if not named and not rep_blocks(layers):
        raise HostError(f"rep: {nothing_to_expand(layers)}")
    layout = Layout.of(layers, yaml, "model.")
    found = chosen(named, policy.select, policy.block, policy.identity, layout)
    grow_(found, policy, trained=False, scales=scales)


def step_masks(model: nn.Module, policy: Policy) -> dict[Tensor, Scales]:
    """Return the masks of the stock layers that a policy of a block of law `mask` means, by kernel.

    Raises:
        BlockError: as `chosen`, or a layer has no mask.
    """
    block, masks = block_of(policy.block), {}
    yaml: Any = getattr(model, "yaml", None)
    scales = GivenScales.of(yaml or {})
    for name, layer in chosen(
        list(stock_convs(model)), policy.select, policy.block, policy.identity, Layout.of(model, yaml)
    ):
        try:
            branches = declared(block, Site(layer.conv, layer.bn, policy.identity), name, scales)
            masks[layer.conv.weight] = kernel_scales(branches, layer.conv)
        except BlockError as error:
            raise BlockError(f"{name}: {error}") from None
    return masks


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
