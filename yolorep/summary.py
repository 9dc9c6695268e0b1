"""`show`: the layers of a model that re-parameterization concerns, and what their branches contribute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from yolorep.blocks.conv_c3 import BRANCH, Conv_C3
from yolorep.deployment import deployed
from yolorep.foreign import foreign_blocks
from yolorep.host import has_stock_class, is_own_block, own_blocks, unwrapped
from yolorep.modes import evaluating
from yolorep.placement import why_without_branches
from yolorep.policy import Policy
from yolorep.precision import exact
from yolorep.stock_layers import edited
from yolorep.summary_report import Branch, Layer, Left, Summary


def show(model: nn.Module) -> Summary:
    """Summarize a model's rep blocks, what each branch contributes, and what folding removes.

    model: with rep blocks of yolorep or of other projects, deployed or stock. Of a compiled model, or of ultralytics'
        `YOLO`, the model inside is summarized. It is left as it is.

    Returns:
        A summary that prints as a table, also as the last expression of a notebook's cell.

    Raises:
        FoldError: a rep block does not fold; the message begins with its path.
        HostError: an exported model, which has no layers.

    Example:
        >>> import torch, yolorep
        >>> summary = yolorep.show(torch.nn.Sequential(yolorep.Conv_C3(3, 8), yolorep.Conv_C3(8, 8)))
        >>> [(layer.name, layer.parameters, layer.deployed) for layer in summary.layers]
        [('0', 312, 224), ('1', 688, 584)]
    """
    core = unwrapped(model)
    with evaluating(core):
        deployment = deployed(core)
        after = deployment.model
        layers = tuple(_layers(core, after, deployment.folding.left))
    return Summary(
        type(core).__name__,
        layers,
        tuple(_left(core, [layer.name for layer in layers])),
        (_modules(core), _modules(after)),
        (_parameters(core), _parameters(after)),
    )


def _layers(model: nn.Module, after: nn.Module, problems: tuple[str, ...]) -> Iterator[Layer]:
    """Yield the rep blocks of a model in evaluation mode. after: its deployed form. problems: what does not fold."""
    foreign = dict(foreign_blocks(model, own_blocks(model)))
    for name, block in model.named_modules():
        if isinstance(block, Conv_C3) and not block.deployed:
            sizes = _parameters(block), _parameters(after.get_submodule(name))
            yield Layer(name, block.block, _shape(block.conv), *sizes, _paths(block))
        elif name in foreign:
            sizes = _parameters(block), _parameters(after.get_submodule(name))
            problem = next((text for text in problems if text.startswith(f"{name}: ")), None)
            convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
            shape = _shape(max(convs, key=lambda conv: conv.weight.numel())) if convs else ""
            yield Layer(name, type(block).__name__, shape, *sizes, problem=problem)


def _paths(block: Conv_C3) -> tuple[Branch, ...]:
    gains, whole = block.gains(), _norm(block.linear_kernel().weight) or 1.0
    norms = {name: _norm(kernel.over(block.conv.out_channels).weight) for name, kernel in block.terms()}
    return tuple(Branch(name.removeprefix(BRANCH), norms[name] / whole, _mean(gains[name])) for name in norms)


def _norm(weight: Tensor) -> float:
    return float(exact(weight.detach()).norm())


def _mean(gain: Tensor | None) -> float | None:
    return None if gain is None else float(gain.detach().abs().double().mean())


def _shape(conv: nn.Conv2d) -> str:
    size = "x".join(map(str, conv.kernel_size))
    stride = f", stride {conv.stride[0]}" if conv.stride != (1, 1) else ""
    groups = f", {conv.groups} groups" if conv.groups > 1 else ""
    return f"{conv.in_channels} to {conv.out_channels}, {size}{stride}{groups}"


def _left(model: nn.Module, shown: Iterable[str]) -> Iterator[Left]:
    """Yield the host's convolutions outside the rep blocks, by the reason for which they have no branches."""
    inside = {id(m) for name in shown for m in model.get_submodule(name).modules()}
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if is_own_block(module):
            inside |= {id(m) for m in module.modules()}
            found.setdefault(f"{type(module).__name__} of the host, which its own fuse() folds", []).append(name)
        elif has_stock_class(module) and not isinstance(module, Conv_C3):
            found.setdefault(_reason(model, name, module), []).append(name)
    for reason, names in found.items():
        yield Left(tuple(names), reason)


def _reason(model: nn.Module, name: str, layer: Any) -> str:
    if not hasattr(layer, "bn"):
        return "fused: no batch norm is left"
    difference = edited(layer)
    if difference is not None:
        return f"edited: {difference}"
    yaml = getattr(model, "yaml", None)
    given = yaml.get("rep") if isinstance(yaml, dict) else None
    return why_without_branches(name, layer, Policy.from_yaml(given, checked=False) if given else None)


def _modules(model: nn.Module) -> int:
    """Return the number of layers that compute: modules without others inside."""
    return sum(not list(module.children()) for module in model.modules())


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
