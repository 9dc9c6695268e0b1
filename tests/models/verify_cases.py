"""Pairs of models that `verify` must tell apart, and models with outputs of every kind."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Found = namedtuple("Found", ["boxes", "scores"])


@dataclass
class Detections:
    """As transformers and super-gradients return them."""

    boxes: Tensor
    labels: Tensor


class Results:
    """As ultralytics returns them: a class with attributes."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("boxes",)

    def __init__(self, boxes: Tensor) -> None:
        self.boxes = boxes


class Returns(nn.Module):
    """A convolution whose output goes through a function, given the model's parameter `value`."""

    def __init__(self, output: Callable[[Tensor, Tensor], Any], value: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.value = nn.Parameter(torch.tensor(value))
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.conv(x), self.value)


# Outputs that differ between value 0 and value 1, by name.
OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "integers": lambda y, v: (y, (y * 0 + v).long()),
    "booleans": lambda y, v: {"y": y, "mask": y * 0 + v > 0.5},
    "integers alone": lambda y, v: (y * 0 + v).int(),
    "a complex tensor": lambda y, v: torch.complex(y, y * 0 + v),
    "a dataclass": lambda y, v: Detections(y + v, y),
    "integers in a dataclass": lambda y, v: Detections(y, (y * 0 + v).long()),
    "a named tuple": lambda y, v: Found(y, y + v),
    "an object": lambda y, v: Results(boxes=y, inner=Results(scores=y + v)),
    "an object with slots": lambda y, v: Slotted(y + v),
    "an object in a list in a dict": lambda y, v: {"a": [y, Results(boxes=y + v)]},
    "a float": lambda y, v: (y, float(v)),
    "a count": lambda y, v: (y, int(v)),
    "a name": lambda y, v: (y, "red" if v else "blue"),
    "a NumPy array": lambda y, v: (y, (y + v).numpy()),
    "a small channel": lambda y, v: torch.cat((y * 1000, (y[:, :1] * 0 + 0.5 + 1e-3 * v)), 1),
    "a small channel, channels last": lambda y, v: torch.cat((y * 1000, y[:, :1] * 0 + 0.5 + 1e-3 * v), 1).movedim(
        1, 3
    ),
    "a small output beside a large one": lambda y, v: (y * 1e4, y[:, :1] * 1e-3 + 1e-6 * v),
    "one value": lambda y, v: y.index_put((torch.tensor(0),) * 4, v * 1e-3 * y.abs().max(), accumulate=True),
    "infinity": lambda y, v: (y, y + (torch.inf if v else -torch.inf)),
    "NaN": lambda y, v: (y, y + (torch.nan if v else 0)),
}
# Outputs of another structure for value 1.
STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "other keys": lambda y, v: {"boxes" if v else "logits": y},
    "one more key": lambda y, v: {"y": y, **({"z": y} if v else {})},
    "keys in another place": lambda y, v: {"a": y, "b": [y]} if v else {"a": [y], "b": y},
    "an integer where a float was": lambda y, v: y.long() if v else y,
    "None where a tensor was": lambda y, v: (y, None if v else y),
    "one more tensor": lambda y, v: (y, y) if v else (y,),
    "another shape": lambda y, v: y[:, :3] if v else y,
    "which would broadcast": lambda y, v: y[:, :1] if v else y,
    "an attribute more": lambda y, v: Results(y=y, **({"z": y} if v else {})),
}
# Outputs in which nothing can be compared.
EMPTY: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "None": lambda y, v: None,
    "an empty list": lambda y, v: [],
    "a text": lambda y, v: "boxes",
    "an object without tensors": lambda y, v: Results(names=["a"]),
    "an empty tensor": lambda y, v: y[:0],
    "a function": lambda y, v: lambda: y,
}


class Head(nn.Module):
    """A detection head: boxes in pixels and class scores in one output, and attributes that say how to read it."""

    def __init__(self) -> None:
        super().__init__()
        self.nc, self.nl, self.reg_max, self.no = 2, 1, 16, 18
        self.names = ["red", "blue"]
        self.stride = torch.tensor([8.0, 16.0])
        self.anchors = [[10, 13], [16, 30]]
        self.boxes, self.scores = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        scores = self.scores(x)
        return torch.cat((self.boxes(x) * 640, scores.sigmoid()), 1).flatten(2), [scores]


class Detector(nn.Module):
    """A model of the layout that both hosts have: the layers in `model`, the head last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), Head())
        self.names = {0: "red", 1: "blue"}
        self.stride = torch.tensor([8.0, 16.0])

    def forward(self, x: Tensor) -> Any:
        return self.model(x)
