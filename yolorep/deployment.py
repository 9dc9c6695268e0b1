"""Deploy a whole model: rep blocks become stock layers.

A stock layer takes the place of its block by a change of class, in the same object: the attributes that the host
attached to it (`i`, `f`, `type`, `np`, hooks, a second reference to a shared layer) stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep import model_yaml
from yolorep.blocks.conv_c3 import Conv_C3, converted
from yolorep.folding import to_conv
from yolorep.foreign import folded
from yolorep.host import host_of, own_blocks, unwrapped
from yolorep.stock_norm import stock_pair

Model = TypeVar("Model", bound=nn.Module)


@torch.inference_mode(False)
def deploy(model: Model, *, inplace: bool = False) -> Model:
    """Fold every rep block into a stock layer of the host: same function, stock classes, stock state-dict keys.

    model: any module in eval mode. A block that was expanded from a host's layer becomes that layer again, with the
        folded weight and a batch norm that together equal it. A `Conv_C3` made by hand becomes one convolution. A
        block of another project (`yolorep.foreign`) takes its project's deployed form; if its fold would not compute
        the same, it stays, and a warning says so. The rep blocks that ultralytics builds itself stay for its `fuse`.
    inplace: change `model` itself instead of a copy.

    Raises:
        FoldError: a block does not fold (training mode, for one); `model` is then unchanged.

    Example:
        >>> deploy(Conv_C3(4, 4).eval())
        Conv_C3(
          deployed
          (conv): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (act): SiLU()
        )
    """
    model = model if inplace else deepcopy(model)
    core = unwrapped(model)
    written = _deployed_yaml(core)
    fold_blocks_(core, leave=own_blocks(core))
    for name, value in written.items():
        setattr(core, name, value)
    return model


def fold_blocks_(model: nn.Module, leave: Iterable[nn.Module] = ()) -> None:
    """Fold the rep blocks of a model in place and leave `model.yaml` as it is, as `fuse()` does.

    leave: blocks of other projects that stay as they are.

    Raises:
        FoldError: a block does not fold; `model` is then unchanged.
    """
    ours, theirs = converted(model, _stock_layers), folded(model, leave)
    for block, (conv, norm) in ours:
        _restore_stock_(block, conv, norm)
    for fold in theirs:
        fold.commit_()


def _stock_layers(block: Conv_C3) -> tuple[nn.Conv2d, _BatchNorm | None]:
    """Return the folded convolution and, if a stock layer is restored, its batch norm."""
    kernel = block.linear_kernel()
    if not hasattr(block, "stock_class"):
        return to_conv(kernel, like=block.conv.weight), None
    return stock_pair(kernel, block.conv.weight, block.bn, overwrite=True)


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


def _deployed_yaml(model: nn.Module) -> dict[str, Any]:
    """Return the attributes of a host's model that name its YAML, with their values after deployment."""
    result: dict[str, Any] = {}
    yaml, file = getattr(model, "yaml", None), getattr(model, "yaml_file", None)
    if isinstance(yaml, dict):
        plan = model_yaml.plan(yaml, host_of(model), checked=False)  # folding asks nothing of the registry
        if plan.is_rep:
            result["yaml"] = model_yaml.deployed(yaml, host_of(model))
    if isinstance(file, str):
        result["yaml_file"] = model_yaml.stock_name(file)
    return result
