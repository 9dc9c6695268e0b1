"""Import RepVGG weights of the authors' repository and of timm into yolorep's classifiers.

Both have one entry per parameter, in blocks of the same order as yolorep's, under other names:
`stage1.0.rbr_dense.conv.weight`, `stages.0.0.conv_kxk.conv.weight` in timm, `model.1.conv.weight` here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.errors import CheckpointError
from yolorep.hosts import checkpoints
from yolorep.hosts.ultralytics.build import build

BLOCK = re.compile(r"(?P<block>stage0|stage\d+\.\d+|stem|stages\.\d+\.\d+)\.(?P<part>.+)")
HEADS = ("linear.", "head.fc.")
# names of a block's parts: (the authors', timm's, yolorep's)
PARTS = (
    ("rbr_dense.", "conv_kxk.", ""),
    ("rbr_1x1.", "conv_1x1.", "branch_1x1."),
    ("rbr_identity.", "identity.", "branch_identity."),
    ("se.down.", "attn.fc1.", "act.0.fc1."),
    ("se.up.", "attn.fc2.", "act.0.fc2."),
    ("rbr_reparam.weight", "reparam_conv.weight", "conv.weight"),  # of a block folded to one convolution
    ("rbr_reparam.bias", "reparam_conv.bias", "bn.bias"),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels 0 to 1, R, G, B: what both train with
PIXELS = 224


def import_file(source: Path, yaml: str, out: Path, *, overwrite: bool = False, console: Console) -> None:
    """Write ultralytics' checkpoint of the classifier `yaml` with the weights of the state dict in `source`.

    The classifier gets as many classes as the state dict has. Images of 224 pixels are then normalized as these
    networks were trained.

    Raises:
        CheckpointError: `source` is no state dict of this network, or `out` cannot be written.
        UsageError, HostError, BlockError: `yaml` cannot be found or built.
    """
    checkpoints.check_target(source, out, overwrite=overwrite)
    state = read_state_dict(source)
    model: Any = build(yaml, classes=_classes(state, source))
    try:
        model.load_state_dict(rep_state_dict(state, model))
    except CheckpointError as error:
        raise CheckpointError(f"{source} does not fit {yaml}: {error}") from None
    from ultralytics.data.augment import classify_transforms

    model.transforms = classify_transforms(PIXELS, mean=MEAN, std=STD)
    arguments = {"task": "classify", "imgsz": PIXELS}
    empty = checkpoints.Checkpoint(source, "ultralytics", {"train_args": arguments}, model)
    checkpoints.save(empty, model.eval(), out, overwrite=overwrite)
    console.print(f"{len(state)} tensors of {source} read as {Path(yaml).stem}; wrote {out}")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file written by torch.save: a state dict, or one under 'state_dict' or 'model'.

    Raises:
        CheckpointError: no such file, or no state dict in it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; accepted: a state dict written by torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # not of torch.save, or more than tensors: its unpickler fails in many ways
        raise CheckpointError(f"{path} is not a state dict written by torch.save") from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise CheckpointError(f"{path} holds no state dict, which maps names to tensors")
    return {key.removeprefix("module."): value for key, value in content.items()}  # module.: of DataParallel


def rep_state_dict(foreign: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a RepVGG state dict under the names of `model`, an ultralytics model of a `repvgg-*.yaml`.

    foreign: of the authors' repository or of timm, with branches or with each block folded to one convolution. A folded
        convolution becomes the dense branch; the other branches then add nothing.

    Raises:
        CheckpointError: it is not a state dict of this network; the message names the first difference.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Conv_C3)}
    foreign_blocks = sorted({match["block"] for match in map(BLOCK.fullmatch, foreign) if match}, key=_numbers)
    if len(foreign_blocks) != len(blocks):
        raise CheckpointError(f"it has {len(foreign_blocks)} RepVGG blocks, the model has {len(blocks)}")
    names = dict(zip(foreign_blocks, blocks, strict=True))
    head = f"model.{len(model.model) - 1}.linear."  # type: ignore[arg-type]
    _check_values(foreign)
    result = {_renamed(key, names, head): value for key, value in foreign.items()}
    folded = {names[match["block"]] for match in map(BLOCK.fullmatch, foreign) if match and "reparam" in match["part"]}
    for name in sorted(folded):
        if f"{name}.bn.bias" not in result:
            raise CheckpointError(f"it has nothing for {name}.bn.bias")
        result |= _neutral(f"{name}.bn.", blocks[name].bn.eps, result[f"{name}.bn.bias"])
    _check(result, model, absent=tuple(f"{name}.branch_" for name in folded))
    return result


def _classes(state: Mapping[str, Tensor], source: Path) -> int:
    """Return the number of rows of the last layer's weight.

    Raises:
        CheckpointError: there is no such weight, or it has no rows.
    """
    for name in (f"{head}weight" for head in HEADS):
        if name in state:
            shape = tuple(state[name].shape)
            if len(shape) != 2 or not shape[0]:
                raise CheckpointError(f"{name} is {shape} in {source}; accepted: (classes, features)")
            return shape[0]
    names = " nor ".join(f"{head}weight" for head in HEADS)
    raise CheckpointError(f"{source} has neither {names}; accepted: RepVGG's state dicts of its authors and of timm")


def _numbers(block: str) -> list[int]:
    """Return the numbers that order the blocks: none in timm's `stem`, 0 in `stage0`, 1 and 10 in `stage1.10`."""
    return [int(number) for number in re.findall(r"\d+", block)]


def _renamed(key: str, names: Mapping[str, str], head: str) -> str:
    """Return a key under the model's names. names: block names by foreign name; head: prefix of its last layer."""
    for prefix in HEADS:
        if key.startswith(prefix):
            return head + key.removeprefix(prefix)
    if match := BLOCK.fullmatch(key):
        for *prefixes, name in PARTS:
            for prefix in prefixes:
                if match["part"].startswith(prefix):
                    return f"{names[match['block']]}.{name}{match['part'].removeprefix(prefix)}"
    raise CheckpointError(f"{key!r} is not a name in RepVGG's state dicts of its authors or of timm")


def _neutral(prefix: str, eps: float, bias: Tensor) -> dict[str, Tensor]:
    """Return the remaining entries of a batch norm that only adds `bias`."""
    one = torch.ones_like(bias)
    return {f"{prefix}weight": one, f"{prefix}running_mean": 0 * one, f"{prefix}running_var": (1 - eps) * one}


def _check_values(state: Mapping[str, Tensor]) -> None:
    """Check that the tensors are those of a trained network.

    Raises:
        CheckpointError: one holds integers or complex numbers, a NaN or an infinity, or a negative variance.
    """
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point():
            raise CheckpointError(f"{key} holds {value.dtype} values; accepted: floating-point numbers")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{key} holds NaN or infinite values; accepted: finite numbers")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise CheckpointError(f"{key} holds a negative variance ({float(value.min()):g}); accepted: 0 or more")


def _check(state: Mapping[str, Tensor], model: nn.Module, absent: tuple[str, ...]) -> None:
    """Check that `state` has the model's names and shapes; keys that begin as in `absent` may be missing.

    Raises:
        CheckpointError: it has not.
    """
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    for key, value in expected.items():
        if key not in state and not key.startswith(absent):
            raise CheckpointError(f"it has nothing for {key}")
        if key in state and state[key].shape != value.shape:
            raise CheckpointError(f"{key} is {tuple(state[key].shape)} in it, {tuple(value.shape)} in the model")
    for key in state:
        if key not in expected and not key.endswith("num_batches_tracked"):
            raise CheckpointError(f"the model has no {key}")
