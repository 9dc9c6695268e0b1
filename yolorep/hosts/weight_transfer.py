"""Stops key-and-shape weight transfer from dropping branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from yolorep.blocks.conv_c3 import BRANCH, Conv_C3
from yolorep.blocks.linear import ChannelMap
from yolorep.blocks.starts import DENSE
from yolorep.deployment import fold_blocks_
from yolorep.errors import HostError
from yolorep.expansion import grow_
from yolorep.modes import evaluating
from yolorep.policy import Policy
from yolorep.stock_layers import gains, is_stock_conv, rep_blocks


def fitting(source: nn.Module, model: nn.Module) -> nn.Module:
    """Return `source`, or a float32 copy of it with those blocks folded whose branches `model` has no place for.

    Copied key by key, such a block would lose its branches, and training would start from another function.
    """
    homeless = [name for name in rep_blocks(source) if not _has_room(_at(model, name), source.get_submodule(name))]
    if not homeless:
        return source
    copy = deepcopy(source).float()  # as the host does next: a checkpoint's float16 would round the folded kernels
    with evaluating(copy):
        for name in homeless:
            fold_blocks_(copy.get_submodule(name))
    return copy


def regrow_(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Grow blocks, by name, again on layers of `model` that weight transfer replaced by stock ones, where they gain.

    A class head of another kind may lack some of the names.
    """
    policy = (getattr(model, "yaml", None) or {}).get("rep")
    named = isinstance(policy, dict) and policy.get("select") is not None
    for name, block in blocks.items():
        layer: Any = _at(model, name)
        options = Policy(block.block, block.identity)  # type: ignore[arg-type]
        if is_stock_conv(layer) and (named or gains(layer, options.block, options.identity)):
            grow_([(name, layer)], options, trained=True)


def check_room(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Check that a target state dict has the branches of the source's blocks, for hosts that transfer state dicts.

    Raises:
        HostError: the target has the convolution of a block, but not every branch.
    """
    homeless = sorted(
        {block for block, key in _branch_keys(source) if key not in target and f"{block}.bn.weight" in target}
    )
    if homeless:
        raise HostError(
            f"{len(homeless)} rep blocks of the weights ({homeless[0]} for one) have branches that the model to train "
            "lacks, and would compute something else without; accepted: no --cfg, which trains the blocks that the "
            "weights have, a --cfg of the same blocks, or weights without branches (yolorep deploy IN OUT)"
        )


def _branch_keys(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name of the block, key) of each tensor in a state dict that belongs to a branch."""
    for key in state:
        parts = key.split(".")
        for place, part in enumerate(parts):
            if part.startswith((BRANCH, DENSE)):
                yield ".".join(parts[:place]), key
                break


def _at(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _has_room(layer: nn.Module | None, block: Any) -> bool:
    """Return whether `layer` has every branch of `block`, of any width.

    False if only the input channels differ: ultralytics then adapts the first kernel of the dense branch alone.
    """
    if not isinstance(layer, Conv_C3) or layer.deployed or layer.law != block.law:
        return False
    (out, into, *_), (old_out, old_into, *_) = layer.conv.weight.shape, block.conv.weight.shape
    return _contents(block) <= _contents(layer) and (out != old_out or into == old_into)


def _contents(block: nn.Module) -> set[tuple[str, str]]:
    """Return the state-dict keys of `block` and the kinds of its fixed maps, which have no key."""
    maps = {(name, m.mode) for name, m in block.named_modules() if isinstance(m, ChannelMap)}
    return maps | {(key, "") for key in block.state_dict() if not key.startswith("act.")}
