"""What is timed: the forms of one model, checkpoint or block that compute the same function."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolorep import model_yaml
from yolorep.blocks import BLOCKS, Conv_C3
from yolorep.blocks.registry import name_of
from yolorep.deployment import deploy
from yolorep.errors import UsageError, first_line
from yolorep.host import host_of
from yolorep.hosts.predictions import TASKS
from yolorep.hosts.ultralytics.build import build, quiet
from yolorep.stock_layers import rep_blocks

UNFUSED, DEPLOYED, STOCK, CONVOLUTION = "unfused", "deployed", "stock", "convolution"
TORCHVISION = "torchvision:"
CLASSIFIER_PIXELS = TASKS["classify"].pixels  # as torchvision's classifiers; some accept no other size
BLOCK_PIXELS = 64  # of a feature map, as a block meets it


@dataclass(frozen=True)
class Subjects:
    """Forms of one thing, by name, float32 on the CPU in evaluation mode; the time of `DEPLOYED` is the unit.

    channels: of the input. pixels: the usual height and width of the input. stride: what both must be multiples of.
    """

    name: str
    forms: dict[str, nn.Module]
    channels: int
    pixels: int
    stride: int = 1


def of_name(what: str, *, channels: int = 64, repo: Path | None = None) -> Subjects:
    """A block by its name, a model YAML by file name or path, a checkpoint by path, or `torchvision:MODEL`.

    what: a block's name may have options: 'mobileone(branches=6)'.
    channels: in and out of a block. repo: the YOLOv5 tree to read a checkpoint of YOLOv5 with.

    Raises:
        UsageError: `what` is none of the four.
        CheckpointError, HostError, BlockError: it is one, but cannot be read or built.
    """
    if is_block(what):
        return of_block(what, channels)
    if what.startswith(TORCHVISION):
        return of_torchvision(what.removeprefix(TORCHVISION))
    suffix = Path(what).suffix
    if suffix in (".yaml", ".yml"):
        return of_model(Path(what).stem, as_loaded(_settled(build(what))))
    if suffix == ".pt":
        from yolorep.hosts.checkpoints import load

        return of_model(Path(what).stem, as_loaded(load(Path(what), repo).model))
    blocks = ", ".join(sorted(BLOCKS))
    raise UsageError(
        f"{what!r} is neither a block ({blocks}) nor a model YAML nor a checkpoint (.pt) nor {TORCHVISION}MODEL"
    )


def is_block(what: str) -> bool:
    """Whether `what` is a block's name, with options after it or without."""
    return name_of(what) in BLOCKS


def of_block(block: str, channels: int) -> Subjects:
    """One `Conv_C3` with its branches and switched, and YOLO's convolution, batch norm and activation as they are.

    The convolution alone is timed too, as the lower bound that folding can reach.
    """
    act = nn.SiLU(inplace=True)  # as both hosts set it in the checkpoints that they load
    unfused, stock = (Conv_C3(channels, channels, act=act, block=b).eval() for b in (block, "plain"))
    deployed = deepcopy(unfused)
    deployed._switch_to_deploy()
    forms = {UNFUSED: unfused, DEPLOYED: deployed, STOCK: stock, CONVOLUTION: deepcopy(deployed.conv)}
    return Subjects(block, forms, channels, BLOCK_PIXELS)


def of_model(name: str, model: nn.Module) -> Subjects:
    """A host's model in evaluation mode: as it is, folded and fused by its host, and its stock model, fused too.

    The stock form is left out for a model without rep blocks, for a classifier whose head no stock row describes, and
    for a classifier of a YOLOv5 tree, which has no YAML.
    """
    forms = {UNFUSED: model}
    with quiet():
        forms[DEPLOYED] = deepcopy(model).fuse()  # type: ignore[operator]  # the hook folds the rep blocks first
        if rep_blocks(model) and _has_stock_yaml(model):
            forms[STOCK] = as_loaded(_stock(model)).fuse()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    stride = getattr(model, "stride", None)
    step = int(stride.max()) if isinstance(stride, torch.Tensor) else 32
    return Subjects(name, forms, first.in_channels, _pixels(model), step)


def as_loaded(model: nn.Module) -> Any:
    """Return a copy whose activations work in place, as both hosts set them when they load a checkpoint to run it.

    A model that a host builds from a YAML has activations that allocate their output, and is slower.
    """
    model = deepcopy(model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True  # type: ignore[assignment]
    return model


def of_torchvision(name: str) -> Subjects:
    """A classifier of torchvision with random weights: as it is, and with its batch norms folded.

    Raises:
        UsageError: torchvision has no classifier of that name, or its batch norms cannot be folded.
    """
    from torch.fx.experimental.optimization import fuse
    from torchvision import models

    accepted = models.list_models(module=models)
    if name not in accepted:
        raise UsageError(f"torchvision has no classifier {name!r}; accepted: {', '.join(accepted)}")
    try:
        model = _settled(models.get_model(name, weights=None), CLASSIFIER_PIXELS)
        fused = fuse(model)
    except Exception as error:  # other people's code can raise anything when it is run and traced
        raise UsageError(f"{name} of torchvision cannot be built and folded: {first_line(error)}") from None
    return Subjects(name, {UNFUSED: model, DEPLOYED: fused}, channels=3, pixels=CLASSIFIER_PIXELS)


def beside(subjects: Subjects, others: Sequence[Subjects]) -> Subjects:
    """`subjects` with the deployed form of each of the others, under its name, to be timed in the same rounds.

    A name that is taken, by a form of `subjects` or by one of the others, gets a number: `best (2)`.

    Raises:
        UsageError: one of them takes another number of channels.
    """
    for other in others:
        if other.channels != subjects.channels:
            raise UsageError(
                f"{other.name} takes {other.channels} channels and {subjects.name} {subjects.channels}: "
                "one input does not fit both"
            )
    forms = dict(subjects.forms)
    for other in others:
        names = (other.name, *(f"{other.name} ({number})" for number in range(2, len(others) + 3)))
        forms[next(name for name in names if name not in forms)] = other.forms[DEPLOYED]
    return replace(subjects, forms=forms, stride=lcm(subjects.stride, *(other.stride for other in others)))


def _has_stock_yaml(model: nn.Module) -> bool:
    """Whether the model's host can build its stock form."""
    yaml: Any = getattr(model, "yaml", None)
    if not yaml:
        return False
    rows = model_yaml.plan(yaml, host_of(model), checked=False).rows
    return not any(name == model_yaml.FC for name, _ in rows.values())


def _pixels(model: nn.Module) -> int:
    classifies = type(model).__name__ == "ClassificationModel"  # of either host
    return CLASSIFIER_PIXELS if classifies else TASKS["detect"].pixels


def _stock(model: nn.Module) -> Any:
    """The model that the host builds when the YAML's rep names are replaced by the stock ones.

    It gets the folded weights where they fit, so that both meet the same numbers.
    """
    stock = type(model)(model_yaml.plan(model.yaml, host_of(model)).stock).eval()  # type: ignore[arg-type, call-arg]
    folded, own = deploy(model).state_dict(), stock.state_dict()
    own.update({key: value for key, value in folded.items() if key in own and own[key].shape == value.shape})
    stock.load_state_dict(own)
    return stock


def _settled(model: nn.Module, pixels: int = 128) -> nn.Module:
    """The model with statistics in its batch norms, so that signals neither die out nor become denormal numbers.

    pixels: of the square images that the statistics are of.
    """
    norms = [m for m in model.eval().modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        with torch.no_grad():
            model(torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
