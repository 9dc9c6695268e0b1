"""Stops key-and-shape weight transfer from dropping branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from yolorep.blocks.conv_c3 import BRANCH, Conv_C3
from yolorep.blocks.linear import ChannelMap
from yolorep.blocks.starts import DENSE
from yolorep.deployment import fold_blocks_
from yolorep.errors import HostError
from yolorep.expansion import grow_
from yolorep.foreign.declared_blocks import BLOCKS
from yolorep.foreign.deployed_forms import Slot
from yolorep.modes import evaluating
from yolorep.placement import gains
from yolorep.policy import Policy
from yolorep.stock_layers import is_stock_conv, rep_blocks

SLOTS = {kind.form.name for kind in BLOCKS if isinstance(kind.form, Slot)}  # names of folded convolutions


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
            fold_blocks_(copy.get_submodule(name)).warn()
    return copy


def regrow_(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Turn layers that weight transfer replaced by stock ones into blocks again, where they gain. blocks: by name.

    A class head of another kind may lack some of the names.
    """
    policy = (getattr(model, "yaml", None) or {}).get("rep")
    named = isinstance(policy, dict) and policy.get("select") is not None
    for name, block in blocks.items():
        layer: Any = _at(model, name)
        options = Policy(block.block, block.identity)  # type: ignore[arg-type]
        if layer is not None and is_stock_conv(layer) and (named or gains(layer, options.block, options.identity)):
            grow_([(name, layer)], options, trained=True)


def transferred(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """Return what to say of a transfer of a state dict by keys and shapes; empty for a target without branches.

    source, target: state dicts; `target` before or after the transfer. A branch that adds nothing counts as silent
    whether the source has it or not.
    """
    fits = {key for key, value in target.items() if key in source and source[key].shape == value.shape}
    branches: dict[str, list[str]] = {}
    for block, key in _branch_keys(target):
        branches.setdefault(block, []).append(key)
    silent = {key for block, keys in branches.items() if _silent(block, keys, source, fits) for key in keys}
    moved = len(fits - silent)
    fresh = len(target) - moved - len(silent)
    others = "the other " if not fresh else ""
    parts = [f"{others}{len(silent)} are silent branches"] if silent else []
    if fresh:
        parts.append(f"{fresh} do not fit and start fresh")
    told = "; ".join([f"{moved} of {len(target)} tensors", *parts])
    return f"yolorep: the weights give {told}" if branches else ""


def _silent(block: str, keys: list[str], source: Mapping[str, Tensor], fits: set[str]) -> bool:
    """Return whether the branches of a block add nothing after the transfer: absent, or with a last gain of zero."""
    present = [key for key in keys if key in fits]
    if not present:
        return f"{block}.bn.running_mean" in fits  # `Conv_C3` silences them where its statistics are loaded
    last = {key[len(block) + 1 :].partition(".")[0]: key for key in present if key.endswith(".weight")}
    return bool(last) and not any(bool(source[key].any()) for key in last.values())


def check_room(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Check that a target state dict has the branches of the source's blocks, for hosts that transfer state dicts.

    Raises:
        HostError: the target lacks a branch of a block in the source, or has branches for a block that the source has
            folded.
    """
    check_unfolded(source, target)
    homeless = sorted(
        {block for block, key in _branch_keys(source) if key not in target and f"{block}.bn.weight" in target}
    )
    if homeless:
        raise HostError(
            f"{len(homeless)} rep blocks of the weights ({homeless[0]} for one) have branches that the model to train "
            "lacks, and would compute something else without; accepted: no --cfg, which trains the blocks that the "
            "weights have, a --cfg of the same blocks, or weights without branches (yolorep deploy IN OUT)"
        )


def check_unfolded(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Check that no folded block of another project in the source's state dict has its branches in the target's.

    Raises:
        HostError: one has; the folded weights would be dropped.
    """
    places = ((key, key.split(".")) for key in source if key not in target)
    folded = sorted({".".join(parts[: _slot(parts)]) for _, parts in places if _slot(parts) >= 0})
    homeless = [block for block in folded if any(key.startswith(f"{block}.") for key in target)]
    if homeless:
        raise HostError(
            f"{len(homeless)} blocks of the weights ({homeless[0]} for one) are folded, and the model to train has "
            "their branches, where the folded weights fit nowhere; accepted: the checkpoint before yolorep deploy"
        )


def _slot(parts: list[str]) -> int:
    """Return the place in a key of the name of a folded convolution of another project; -1 if there is none."""
    return next((place for place, part in enumerate(parts) if part in SLOTS), -1)


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
