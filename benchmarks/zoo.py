"""Every model that the hosts build from a YAML, by family and task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

TASKS = ("detect", "segment", "pose", "obb", "classify", "depth", "semantic")
TREE = "YOLOv5 tree"
CUTOFF = 10  # layers of the detector that a tree builds its classifier from

# family → task → YAMLs at the smallest scale; the first of each is exported
FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
    "v3": {"detect": ("yolov3-tiny.yaml", "yolov3.yaml", "yolov3-spp.yaml")},
    "v5u": {"detect": ("yolov5n.yaml", "yolov5n-p6.yaml")},
    "v6": {"detect": ("yolov6n.yaml",)},
    "v8": {
        "detect": ("yolov8n.yaml", *(f"yolov8n-{name}.yaml" for name in ("p2", "p6", "ghost", "ghost-p2", "ghost-p6"))),
        "segment": ("yolov8n-seg.yaml", "yolov8n-seg-p6.yaml"),
        "pose": ("yolov8n-pose.yaml", "yolov8n-pose-p6.yaml"),
        "obb": ("yolov8n-obb.yaml",),
        "classify": ("yolov8n-cls.yaml", "yolov8n-cls-resnet50.yaml", "yolov8n-cls-resnet101.yaml"),
    },
    "v8 World": {"detect": ("yolov8n-world.yaml", "yolov8n-worldv2.yaml")},
    "YOLOE v8": {"detect": ("yoloe-v8n.yaml",), "segment": ("yoloe-v8n-seg.yaml",)},
    "v9": {
        "detect": tuple(f"yolov9{scale}.yaml" for scale in "tsmce"),
        "segment": ("yolov9c-seg.yaml", "yolov9e-seg.yaml"),
    },
    "v10": {"detect": tuple(f"yolov10{scale}.yaml" for scale in "nsmblx")},
    "11": {
        "detect": ("yolo11n.yaml",),
        "segment": ("yolo11n-seg.yaml",),
        "pose": ("yolo11n-pose.yaml",),
        "obb": ("yolo11n-obb.yaml",),
        "classify": ("yolo11n-cls.yaml",),  # yolo11-cls-resnet18 downloads the weights of its backbone
    },
    "YOLOE 11": {"detect": ("yoloe-11n.yaml",), "segment": ("yoloe-11n-seg.yaml",)},
    "12": {
        "detect": ("yolo12n.yaml",),
        "segment": ("yolo12n-seg.yaml",),
        "pose": ("yolo12n-pose.yaml",),
        "obb": ("yolo12n-obb.yaml",),
        "classify": ("yolo12n-cls.yaml",),
    },
    "26": {
        "detect": ("yolo26n.yaml", "yolo26n-p2.yaml", "yolo26n-p6.yaml"),
        "segment": ("yolo26n-seg.yaml",),
        "pose": ("yolo26n-pose.yaml",),
        "obb": ("yolo26n-obb.yaml",),
        "classify": ("yolo26n-cls.yaml",),
        "depth": ("yolo26n-depth.yaml",),
        "semantic": ("yolo26n-sem.yaml",),
    },
    "YOLOE 26": {"detect": ("yoloe-26n.yaml",), "segment": ("yoloe-26n-seg.yaml",)},
    "RT-DETR": {
        "detect": (
            "yolov8n-rtdetr.yaml",
            *(f"rtdetr-{name}.yaml" for name in ("l", "x", "resnet50", "resnet101")),
        )
    },
    TREE: {
        "detect": ("yolov5n.yaml", *(f"hub/yolov5{name}.yaml" for name in ("n6", "-p7", "-bifpn", "s-ghost"))),
        "segment": ("segment/yolov5n-seg.yaml",),
        "classify": ("yolov5n.yaml",),
    },
}


@dataclass(frozen=True)
class Model:
    """One model of a host. yaml: the name under which the host finds it."""

    family: str
    task: str
    yaml: str

    @property
    def name(self) -> str:
        stem = self.yaml.rpartition("/")[2].removesuffix(".yaml")
        if self.family != TREE:
            return stem
        return f"{stem}-cls of a YOLOv5 tree" if self.task == "classify" else f"{stem} of a YOLOv5 tree"

    def built(self) -> nn.Module:
        """Build the model with fresh weights; a YOLOv5 tree must be importable for its models."""
        return of_tree(self) if self.family == TREE else yolo(self.yaml).model

    @property
    def exported(self) -> bool:
        """Whether this model is the exported one of its family and task."""
        return FAMILIES[self.family][self.task][0] == self.yaml


def models() -> Iterator[Model]:
    """Yield every model, family by family."""
    for family, tasks in FAMILIES.items():
        for task, yamls in tasks.items():
            for yaml in yamls:
                yield Model(family, task, yaml)


def yolo(yaml: str) -> Any:
    """Return `YOLO`, `RTDETR`, `YOLOE` or `YOLOWorld` of ultralytics around a YAML."""
    from ultralytics import RTDETR, YOLO, YOLOE, YOLOWorld

    kinds: dict[str, Any] = {"rtdetr": RTDETR, "yoloe": YOLOE, "world": YOLOWorld}
    kind = next((kind for word, kind in kinds.items() if word in yaml), YOLO)
    return kind(yaml)


def of_tree(model: Model) -> nn.Module:
    """Build a model with a YOLOv5 tree."""
    from models import yolo

    from yolorep.hosts.yolov5.tree import find_tree

    file = str(find_tree() / "models" / model.yaml)
    if model.task == "classify":
        classifier = yolo.ClassificationModel(model=yolo.DetectionModel(file), cutoff=CUTOFF)
        classifier.names = {index: str(index) for index in range(classifier.nc)}  # set by the tree's training
        return classifier
    return (yolo.SegmentationModel if model.task == "segment" else yolo.DetectionModel)(file)
