"""Read the constants of csla's 1x1 kernels: from a model that was trained with `csla(scales=learned)`, or a YAML."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.csla import SMALL
from yolorep.blocks.linear import Scale
from yolorep.blocks.registry import name_of
from yolorep.errors import CheckpointError, UsageError
from yolorep.given_scales import OPTION, GivenScales
from yolorep.hosts import restricted_pickle
from yolorep.hosts.checkpoints import host_of
from yolorep.hosts.damaged_files import check_whole
from yolorep.hosts.model_files import SUFFIXES
from yolorep.hosts.needs import WHERE_CLASSES_ARE
from yolorep.hosts.shared_hooks import read_yaml
from yolorep.paths import is_file


def read_scales(file: Path) -> GivenScales:
    """Return the constants in a file: a checkpoint (.pt), or a YAML or JSON file with a list of numbers by layer.

    The constants of a checkpoint are the sizes of its learned scales: the sign of one is that of its 1x1 kernel.

    Raises:
        UsageError: there is no such file, or it has another ending.
        CheckpointError, HostError, BlockError: it cannot be read, or holds no such constants.
    """
    if not is_file(file):
        raise UsageError(
            f"{OPTION}={file}: no such file; accepted: a checkpoint of csla(scales=learned), or a YAML file"
        )
    if file.suffix in (*SUFFIXES, ".json"):
        return GivenScales.made(str(file), read_yaml(file, "a mapping from layers to lists of numbers"))
    if file.suffix != ".pt":
        raise UsageError(f"{OPTION}={file} is not accepted; accepted: a checkpoint (.pt), or a YAML or JSON file")
    host_of(file)
    check_whole(file)
    try:
        content = restricted_pickle.load(file)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{file} needs a class that is not here: {error}; {WHERE_CLASSES_ARE}") from None
    model = (content.get("ema") or content.get("model")) if isinstance(content, dict) else content
    layers = learned(model) if isinstance(model, nn.Module) else {}
    if not layers:
        raise CheckpointError(f"{file} has no learned scales; accepted: a checkpoint of rep='csla(scales=learned)'")
    return GivenScales.made(str(file), layers)


def learned(model: nn.Module) -> dict[str, list[float]]:
    """Return the sizes of the learned scales of a model's blocks `csla`, by name of the layer."""
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Conv_C3)}
    scales = {name: getattr(getattr(block, SMALL, None), "scale", None) for name, block in blocks.items()}
    return {
        name: scale.weight.detach().double().abs().tolist()
        for name, scale in scales.items()
        if isinstance(scale, Scale) and name_of(blocks[name].block) == "csla"
    }
