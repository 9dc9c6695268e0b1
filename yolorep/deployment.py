"""Deploy a whole model: rep blocks become stock layers.

A stock layer takes the place of its block by a change of class, in the same object: the attributes that the host
attached to it (`i`, `f`, `type`, `np`, hooks, a second reference to a shared layer) stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from threading import RLock
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep import foreign, model_yaml
from yolorep.blocks.conv_c3 import Conv_C3, converted
from yolorep.blocks.twin import thaw_, trainable_weight
from yolorep.folding import to_conv
from yolorep.host import host_of, own_blocks, unwrapped
from yolorep.model_copy import copied
from yolorep.stock_norm import stock_pair
from yolorep.weight_readers import read_outside

Model = TypeVar("Model", bound=nn.Module)
_LOCK = RLock()  # two threads that deploy one model in place would fold a block twice


@dataclass(frozen=True)
class Folding:
    """What was folded in a model.

    folded: names of the blocks that became plain layers. left: a sentence for each block that stays, with the reason.
    notes: sentences on blocks that were folded or cleared in an unusual way. foreign: those of `folded` that are blocks
    of another project.
    """

    folded: tuple[str, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]
    foreign: tuple[str, ...]

    def warn(self, stacklevel: int = 2) -> None:
        """Issue a warning for each block that is left, and for each note."""
        for line in (*self.left, *self.notes):
            warnings.warn(line, stacklevel=stacklevel + 1)


@dataclass(frozen=True)
class Deployment(Generic[Model]):
    """A deployed model and what was folded in it."""

    model: Model
    folding: Folding


def deploy(model: Model, *, inplace: bool = False) -> Model:
    """Fold every rep block into a stock layer of the host: same function, stock classes, stock state-dict keys.

    model: any module in eval mode. A block that was expanded from a host's layer becomes that layer again, with the
        folded weight and a batch norm that together equal it. A `Conv_C3` made by hand becomes one convolution. A
        block of another project (`yolorep.foreign`) takes its project's deployed form; if its fold would not compute
        the same, it stays, and a warning says so. The rep blocks that ultralytics builds itself stay for its `fuse`.
    inplace: change `model` itself instead of a copy.

    Raises:
        FoldError: a block does not fold (training mode, for one); `model` is then unchanged.
        HostError: the model cannot be copied, such as one with pruning masks.

    Example:
        >>> deploy(Conv_C3(4, 4).eval())
        Conv_C3(
          deployed
          (conv): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (act): SiLU()
        )
    """
    deployment = deployed(model, inplace=inplace)
    deployment.folding.warn(stacklevel=2)
    return deployment.model


@torch.inference_mode(False)
def deployed(model: Model, *, inplace: bool = False) -> Deployment[Model]:
    """Do what `deploy` does, and return what was folded and left instead of issuing warnings.

    Raises:
        FoldError, HostError: as `deploy`.
    """
    model = model if inplace else copied(model)
    core = unwrapped(model)
    with _LOCK:
        written = stock_attributes(core)
        folding = fold_blocks_(core, leave=own_blocks(core))
        for name, value in written.items():
            setattr(core, name, value)
    return Deployment(model, folding)


def fold_blocks_(model: nn.Module, leave: Iterable[nn.Module] = ()) -> Folding:
    """Fold the rep blocks of a model in place and leave `model.yaml` as it is, as `fuse()` does.

    leave: blocks of other projects that stay as they are.

    Returns:
        How many blocks of yolorep and of other projects were folded.

    Raises:
        FoldError: a block does not fold; `model` is then unchanged.
    """
    with _LOCK:
        names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        blocks, others = converted(model, _stock_layers), foreign.folded(model, leave)
        readers = read_outside(model, [block for block, _ in blocks])
        done, left, notes = [], list(others.left), []
        for block, (conv, norm) in blocks:
            name = names[id(block)]
            if block not in readers:
                _restore_stock_(block, conv, norm)
                done.append(name)
            elif readers[block] or not hasattr(block, "stock_class"):
                left.append(f"{name}: {type(block).__name__} is left as it is: another layer computes with its weights")
            else:
                _restore_stock_(block, thaw_(block.conv), block.bn)
                notes.append(f"{name}: its branches are removed unfolded: another layer runs its weights without them")
        for fold in others.folds:
            fold.commit_()
            notes += [f"{fold.name}: {fold.note}"] if fold.note else []
        foreign_names = tuple(fold.name or type(fold.block).__name__ for fold in others.folds)
    return Folding((*done, *foreign_names), tuple(left), tuple(notes), foreign_names)


def _stock_layers(block: Conv_C3) -> tuple[nn.Conv2d, _BatchNorm | None]:
    """Return the folded convolution and, if a stock layer is restored, its batch norm."""
    kernel, weight = block.linear_kernel(), trainable_weight(block.conv)
    if not hasattr(block, "stock_class"):
        return to_conv(kernel, like=weight), None
    return stock_pair(kernel, weight, block.bn, overwrite=True)


def _restore_stock_(block: Conv_C3, conv: nn.Conv2d, norm: _BatchNorm | None) -> None:
    stock = block.__dict__.pop("stock_class", None)
    block.drop_branches_()
    block.conv = conv.train(block.training)
    if stock is None:
        return
    block.bn = norm  # type: ignore[assignment]
    block._modules["act"] = block._modules.pop("act")  # conv, bn, act: the order in which the host registers them
    for attribute in ("block", "identity", "law"):
        block.__dict__.pop(attribute, None)
    block.__class__ = stock


def stock_attributes(model: nn.Module) -> dict[str, Any]:
    """Return the attributes of a host's model that name its YAML, with their values after deployment."""
    result: dict[str, Any] = {}
    yaml, file = getattr(model, "yaml", None), getattr(model, "yaml_file", None)
    if isinstance(yaml, dict):
        host = host_of(model)
        plan = model_yaml.plan(yaml, host, checked=False)  # folding asks nothing of the registry
        if plan.is_rep:
            result["yaml"] = model_yaml.deployed(yaml, host)
    if isinstance(file, str):
        result["yaml_file"] = model_yaml.stock_name(file)
    return result
