"""Expand and deploy over a whole model: stock layers become rep blocks, and rep blocks become stock layers again.

A block takes the place of its stock layer by a change of class, in the same object: whatever the host attached to it
(`i`, `f`, `type`, `np`, hooks, a second reference to a shared layer) stays where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep import rows
from yolorep.blocks.conv_c3 import Conv_C3, converted, excited
from yolorep.blocks.registry import BLOCKS, Site, check_options, zero_gain_
from yolorep.calibration import calibrated
from yolorep.errors import BlockError, HostError
from yolorep.fold import to_conv

Model = TypeVar("Model", bound=nn.Module)
Select = str | int | Sequence[str | int] | Callable[[str, nn.Module], bool] | None

# (module, class) of the hosts' convolution + batch norm + activation layers. Names, so that no host is imported.
STOCK_CONVS = {
    (module, name)
    for module in ("ultralytics.nn.modules.conv", "models.common", "yolov5.models.common")
    for name in ("Conv", "DWConv")
}


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
    if "rep" in (getattr(model, "yaml", None) or {}):
        raise HostError(f"{type(model).__name__} is already expanded, by {model.yaml['rep']}; deploy() it first")  # type: ignore
    model = model if inplace else deepcopy(model)
    chosen = [(name, layer) for name, layer in stock_convs(model) if _is_selected(name, layer, select)]
    if select is None:
        chosen = [(name, layer) for name, layer in chosen if _gains(layer, block, identity)]
    if not chosen:
        raise HostError(_nothing_to_expand(model, select))
    grow_(chosen, rows.Options(block, identity), silent=True)
    _write_policy(model, block, identity, select, [name for name, _ in chosen])
    return model


def deploy(model: Model, *, inplace: bool = False) -> Model:
    """Fold every rep block into a stock layer of the host: same function, stock classes, stock state-dict keys.

    model: any module in evaluation mode. A block that was grown on a host's layer becomes that layer again, with the
        folded weight and a batch norm that passes it on unchanged; a `Conv_C3` made by hand becomes one convolution.
    inplace: change `model` itself instead of a copy.

    Raises:
        FoldError: a block does not fold (training mode, for one); `model` is then as it was.
    """
    model = model if inplace else deepcopy(model)
    for block, (conv, norm) in converted(model, _stock_layers):
        _restore_stock_(block, conv, norm)
    yaml = getattr(model, "yaml", None)
    if isinstance(yaml, dict) and rows.plan(yaml, dialect_of(model)).is_rep:
        model.yaml = rows.deployed(yaml, dialect_of(model))  # type: ignore[assignment]
    name = getattr(model, "yaml_file", None)
    if isinstance(name, str):
        model.yaml_file = rows.stock_name(name)  # type: ignore[assignment]
    return model


def grow_(layers: Iterable[tuple[str, nn.Module]], options: rows.Options, *, silent: bool) -> None:
    """Turn stock layers into `Conv_C3` in place; all of them or, on an error, none.

    silent: start with branches that add nothing (for a trained layer), else as freshly initialized ones.

    Raises:
        BlockError: the branches do not fit beside a layer; the message begins with its name.
    """
    declared = []
    for name, layer in layers:
        try:
            declared.append((layer, BLOCKS[options.block](Site(layer.conv, layer.bn, options.identity))))  # type: ignore[arg-type]
        except BlockError as error:
            raise BlockError(f"{name}: {error}") from None
    for layer, branches in declared:
        layer.stock_class = type(layer)  # type: ignore[assignment]
        layer.__class__ = Conv_C3
        layer.attach_(branches, options.block, options.identity)  # type: ignore[operator]
        if options.se:
            weight: Tensor = layer.conv.weight  # type: ignore[assignment, union-attr]
            squeeze = excited(layer.act, weight.shape[0])  # type: ignore[arg-type]
            layer.act = squeeze.to(device=weight.device, dtype=weight.dtype).train(layer.training)
        if silent:
            for branch in branches.values():
                zero_gain_(branch)


def grow_planned_(layers: nn.Sequential, plan: rows.Plan) -> None:
    """Grow what a model YAML asks for on the layers that a host built from its stand-in, freshly initialized.

    Raises:
        BlockError: a row or the policy asks for branches that do not fit; the message names the layer.
    """
    for index, (name, options) in plan.rows.items():
        layer = layers[index]
        if name != "Conv_C3":
            for bottleneck in (m for m in layer.modules() if _is_bottleneck(m)):
                _resize_(bottleneck, options.k)
        inside = "*m.*" if name == "C3Rep" else "*"
        chosen = [(f"model.{index}.{n}".rstrip("."), m) for n, m in stock_convs(layer) if fnmatchcase(n, inside)]
        grow_(chosen, options, silent=False)
    if plan.policy is not None:
        p = plan.policy
        named = [(f"model.{name}", layer) for name, layer in stock_convs(layers)]
        chosen = [(n, m) for n, m in named if _is_selected(n, m, p.select)]
        if not chosen:
            raise BlockError(f"rep: select {list(p.select or ())} matches none of the {len(named)} stock convolutions")
        grow_([c for c in chosen if p.select is not None or _gains(c[1], p.block, p.identity)], p, silent=False)
    for layer in layers:
        if hasattr(layer, "np"):
            layer.np = sum(p.numel() for p in layer.parameters())  # type: ignore[assignment]


def stock_convs(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The hosts' own, unfused convolution layers in `model`, by name."""
    for name, module in model.named_modules():
        if is_stock_conv(module) and isinstance(getattr(module, "bn", None), _BatchNorm):
            yield name, module


def is_stock_conv(module: nn.Module) -> bool:
    """Whether `module` is a convolution layer of a host, fused or not."""
    return (type(module).__module__, type(module).__name__) in STOCK_CONVS


def rep_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks in `model` that still have their branches."""
    return [name for name, m in model.named_modules() if isinstance(m, Conv_C3) and not m.deployed]


def dialect_of(model: nn.Module) -> rows.Dialect:
    """How the model's host writes its YAML."""
    return rows.ULTRALYTICS if type(model).__module__.startswith("ultralytics.") else rows.YOLOV5


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the duration of the block; each module's own mode is then restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _stock_layers(block: Conv_C3) -> tuple[nn.Conv2d, _BatchNorm | None]:
    """The convolution and, where a stock layer is to be restored, the batch norm that compute what the block does."""
    kernel = block.linear_kernel()
    if not hasattr(block, "stock_class"):
        return to_conv(kernel, like=block.conv.weight), None
    kernel, norm = calibrated(kernel, block.bn)
    conv = to_conv(kernel, like=block.conv.weight)
    conv.bias = None
    return conv, norm


def _restore_stock_(block: Conv_C3, conv: nn.Conv2d, norm: _BatchNorm | None) -> None:
    stock = block.__dict__.pop("stock_class", None)
    block.drop_branches_()
    block.conv = conv.train(block.training)
    if stock is None:
        return
    block.bn = norm  # type: ignore[assignment]
    block._modules["act"] = block._modules.pop("act")  # conv, bn, act: the order in which the host registers them
    for attribute in ("block", "identity"):
        del block.__dict__[attribute]
    block.__class__ = stock


def _is_selected(name: str, layer: nn.Module, select: Select) -> bool:
    if select is None:
        return True
    if callable(select):
        return bool(select(name, layer))
    return any(_matches(name, wanted) for wanted in _listed(select))


def _matches(name: str, wanted: str | int) -> bool:
    if isinstance(wanted, int):
        return f"{name}.".startswith(f"model.{wanted}.")
    return fnmatchcase(name, wanted)


def _listed(select: str | int | Sequence[str | int]) -> list[str | int]:
    return [select] if isinstance(select, (str, int)) else list(select)


def _gains(layer: nn.Module, block: str, identity: str) -> bool:
    """Whether the block's branches fit beside the layer and are more than its own 1x1 once again."""
    site = Site(layer.conv, layer.bn, identity)  # type: ignore[arg-type]
    try:
        return bool(BLOCKS[block](site)) and (site.keeps_shape or not site.pointwise)
    except BlockError:
        return False


def _nothing_to_expand(model: nn.Module, select: Select) -> str:
    layers = [m for m in model.modules() if is_stock_conv(m)]
    if rep_blocks(model) and select is None:
        return f"{type(model).__name__} is already expanded; deploy() it first"
    if not layers:
        return f"{type(model).__name__} has no convolution layer of ultralytics or YOLOv5; accepted: a model of either"
    if not any(True for _ in stock_convs(model)):
        return f"{type(model).__name__} is fused (its layers have no batch norm); expand it before fuse()"
    return f"select={select!r} matches none of the {len(layers)} stock convolutions, such as 'model.1'"


def _write_policy(model: nn.Module, block: str, identity: str, select: Select, chosen: list[str]) -> None:
    yaml = getattr(model, "yaml", None)
    if isinstance(yaml, dict):
        policy = {"block": block, "identity": identity}
        if select is not None:
            policy["select"] = chosen if callable(select) else _listed(select)  # type: ignore[assignment]
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
