"""What yolorep has to know of each host, as one record, and how a host's whole model is recognized.

Adding a host takes a record here, with its place in `HOSTS`, and a folder `yolorep/hosts/NAME` with the same file names
as its neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolorep.errors import HostError

if TYPE_CHECKING:  # hooks are installed from these records before torch is needed
    from torch import nn

Class = tuple[str, str]  # module and name; no host is imported to know its classes


@dataclass(frozen=True)
class Host:
    """A code base whose models yolorep expands, trains and deploys.

    name: its folder in `yolorep.hosts`. supported: versions, as messages print them.
    stock_convs: its layers of convolution, batch norm and activation.
    rep_blocks: rep blocks that it builds and fuses itself; in its models they are stock.
    model_modules: modules that define its model classes.
    checkpoint_marks: how the class names in its checkpoints begin.
    packages: whose layers a checkpoint may name.
    hooks: file in its folder that hooks a module, by name of the module.
    anchors_in_head: whether the head's row in a model YAML names anchors.
    sized_bottlenecks: whether a Bottleneck row takes kernel sizes.
    yaml_classifiers: whether it builds classifiers from a YAML.
    """

    name: str
    supported: str
    stock_convs: frozenset[Class]
    rep_blocks: frozenset[Class]
    model_modules: frozenset[str]
    checkpoint_marks: tuple[str, ...]
    packages: tuple[str, ...]
    hooks: Mapping[str, str]
    anchors_in_head: bool
    sized_bottlenecks: bool
    yaml_classifiers: bool


ULTRALYTICS = Host(
    name="ultralytics",
    supported="ultralytics 8.2 to 8.4",
    stock_convs=frozenset(("ultralytics.nn.modules.conv", name) for name in ("Conv", "DWConv")),
    rep_blocks=frozenset({("ultralytics.nn.modules.conv", "RepConv"), ("ultralytics.nn.modules.block", "RepVGGDW")}),
    model_modules=frozenset({"ultralytics.nn.tasks"}),
    checkpoint_marks=("ultralytics.nn.",),
    packages=("ultralytics",),
    hooks={
        "ultralytics.nn.tasks": "model_hooks",
        "ultralytics.engine.model": "training_hooks",
        "ultralytics.engine.trainer": "training_hooks",
        "ultralytics.utils.dist": "process_hooks",
    },
    anchors_in_head=False,
    sized_bottlenecks=True,
    yaml_classifiers=True,
)
YOLOV5 = Host(  # a tree, and the published package, whose modules are named `models` as well as `yolov5.models`
    name="yolov5",
    supported="YOLOv5 v5.0 to v7.0 and master, and the published yolov5 package",
    stock_convs=frozenset(
        (module, name) for module in ("models.common", "yolov5.models.common") for name in ("Conv", "DWConv")
    ),
    rep_blocks=frozenset(),
    model_modules=frozenset({"models.yolo", "yolov5.models.yolo"}),
    checkpoint_marks=("models.", "yolov5."),
    packages=("yolov5", "models", "utils"),
    hooks={"models.yolo": "model_hooks", "yolov5.models.yolo": "model_hooks"},
    anchors_in_head=True,
    sized_bottlenecks=False,
    yaml_classifiers=False,
)
HOSTS = (ULTRALYTICS, YOLOV5)


def host_of(model: nn.Module) -> Host:
    """Return the host whose class `model` is; YOLOV5 for other models, whose YAML, if any, is of that dialect."""
    modules = {kind.__module__ for kind in type(model).__mro__}
    return next((host for host in HOSTS if modules & host.model_modules), YOLOV5)


def own_classes(host: Host, names: Iterable[str]) -> frozenset[str]:
    """Return those of `names` that are classes of the host as it is imported here, edited by its user perhaps."""
    modules = [sys.modules.get(name) for name in (*host.model_modules, *(module for module, _ in host.stock_convs))]
    return frozenset(name for name in names for module in modules if _is_foreign(getattr(module, name, None)))


def _is_foreign(kind: object) -> bool:
    return isinstance(kind, type) and not kind.__module__.startswith("yolorep.")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the host's model inside `torch.compile`, data parallelism or ultralytics' `YOLO`; else `model` itself.

    Raises:
        HostError: `YOLO` holds an exported file, which has no layers.
    """
    from torch import nn

    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    if type(model).__name__ == "OptimizedModule":  # by name: torch imports its compiler only where it is used
        return unwrapped(model._orig_mod)  # type: ignore[arg-type]
    if any(kind.__module__ == "ultralytics.engine.model" for kind in type(model).__mro__):
        if not isinstance(model.model, nn.Module):
            raise HostError(
                f"{model.model} is an exported model, without layers; accepted: a checkpoint (.pt) or a YAML"
            )
        return model.model
    return model


def own_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the rep blocks in `model` that its host builds and fuses itself."""
    host = host_of(model)
    return [module for module in model.modules() if _class(module) in host.rep_blocks]


def is_own_block(module: nn.Module) -> bool:
    """Return whether a layer is, by its class, a rep block that a host builds and fuses itself."""
    return any(_class(module) in host.rep_blocks for host in HOSTS)


def has_stock_class(module: nn.Module) -> bool:
    """Return whether a layer is, by its class, a host's convolution + batch norm + activation, fused or not."""
    return any(_class(module) in host.stock_convs for host in HOSTS)


def _class(module: nn.Module) -> Class:
    return type(module).__module__, type(module).__name__
