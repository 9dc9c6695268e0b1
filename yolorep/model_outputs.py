"""What a model returns, as a flat mapping from a path such as `[0].boxes['scores']` to a tensor or a plain value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.layout)
DEPTH = 32  # a result that is nested deeper refers to something that is no output


def leaves(output: Any) -> dict[str, Any]:
    """Return the tensors and plain values in an output, by path.

    Looked into: mappings, lists, tuples, named tuples, sets of plain values, dataclasses and any other object with
    attributes. NumPy arrays become tensors. Modules, functions and classes are passed over.

    Example:
        >>> leaves({"boxes": [torch.zeros(1), 3]})
        {"['boxes'][0]": tensor([0.]), "['boxes'][1]": 3}
    """
    return dict(_walk("", output, frozenset()))


def _walk(path: str, value: Any, above: frozenset[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, *PLAIN)):
        yield path, value
    elif isinstance(value, (nn.Module, type)) or callable(value):
        return
    elif type(value).__module__ == "numpy":
        yield path, _from_numpy(value)
    elif id(value) not in above and len(above) < DEPTH:
        for step, part in _parts(value):
            yield from _walk(path + step, part, above | {id(value)})


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", value[key]) for key in value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f".{name}", part) for name, part in zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"[{index}]", part) for index, part in enumerate(sorted(value, key=repr)))
    else:
        yield from ((f".{name}", part) for name, part in sorted(_attributes(value).items()))


def _attributes(value: Any) -> dict[str, Any]:
    slots = (name for kind in type(value).__mro__ for name in _slots(kind))
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    named = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in named if name not in ("__dict__", "__weakref__"))


def _from_numpy(value: Any) -> Any:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError):  # strings, objects
        return repr(value)
