"""What the rows of a model YAML may hold. No value is converted: a host would take `true` for 1."""

from __future__ import annotations

import ast
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yolorep.errors import BlockError
from yolorep.policy import LARGEST_KERNEL
from yolorep.validation import sentence, short

LARGEST_CHANNELS = 2**16
LARGEST = 1000  # repeats, strides, groups, dilations
LAYOUT = "accepted: a mapping with the lists `backbone` and `head`, whose rows are [from, number, module, [arguments]]"
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LAYER = re.compile(r"(torch\.)?nn\.[A-Z]\w*")

Channels = Annotated[
    int, Field(gt=0, le=LARGEST_CHANNELS, description=f"a number of output channels from 1 to {LARGEST_CHANNELS}")
]
Kernel = Annotated[int, Field(gt=0, le=LARGEST_KERNEL)]
KernelOrPair = Annotated[
    Kernel | Annotated[list[Kernel], Field(min_length=2, max_length=2)],
    Field(description=f"a kernel size from 1 to {LARGEST_KERNEL}, or a list of two"),
]
Count = Annotated[int, Field(gt=0, le=LARGEST)]
Counted = Field(description=f"an integer from 1 to {LARGEST}")
Border = Annotated[int, Field(ge=0, le=LARGEST)]
# A host reads the text None as None.
Padding = Annotated[
    Border | Annotated[list[Border], Field(min_length=2, max_length=2)] | Literal["None"] | None,
    Field(description=f"an integer from 0 to {LARGEST}, a list of two, or null"),
]
Flag = Annotated[bool, Field(description="true or false")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ConvArguments(_Strict):
    """Arguments of a Conv_C3 row, in this order."""

    channels: Channels
    kernel: KernelOrPair = 3
    stride: Annotated[Count, Counted] = 1
    padding: Padding = None
    groups: Annotated[Count, Counted] = 1
    dilation: Annotated[Count, Counted] = 1
    activation: Annotated[bool | str, Field(description="true, false or an activation such as nn.ReLU()")] = True


class BottleneckArguments(_Strict):
    """Arguments of a BottleneckRep and of a C3Rep row, in this order."""

    channels: Channels
    shortcut: Flag = True
    groups: Annotated[Count, Counted] = 1
    expansion: Annotated[float, Field(gt=0, le=8, description="a number above 0, up to 8")] = 0.5


class HeadArguments(_Strict):
    """Arguments of an FC row."""

    classes: Annotated[
        Annotated[int, Field(gt=0, le=LARGEST_CHANNELS)] | Literal["nc"],
        Field(description=f"nc, or a number of classes from 1 to {LARGEST_CHANNELS}"),
    ]


class Row(_Strict):
    """A row of any layer."""

    inputs: Annotated[
        int | Annotated[list[int], Field(min_length=1)], Field(description="a layer's index, or a list of them")
    ]
    number: Annotated[Count, Counted]
    module: Annotated[str, Field(description="the name of a layer")]
    arguments: Annotated[list[Any], Field(description="a list")]


def check_arguments(schema: type[BaseModel], given: list[Any], where: str) -> None:
    """Check the positional arguments of a rep row. where: how messages name it.

    Raises:
        BlockError: there are none, too many, or one has a value that is not accepted.
    """
    names = list(schema.model_fields)
    if not given:
        raise BlockError(f"{where}: no arguments; accepted: {', '.join(names)}")
    if len(given) > len(names):
        raise BlockError(f"{where}: {len(given)} arguments; accepted: at most {len(names)}, {', '.join(names)}")
    _validate(schema, dict(zip(names, given, strict=False)), where)


def check_model(content: Any) -> None:
    """Check the layout of a model YAML, of the stock rows in it too.

    Raises:
        BlockError: it has no such layout, or a host would evaluate more than a layer's name.
    """
    if not isinstance(content, dict):
        raise BlockError(f"it holds {'nothing' if content is None else short(content)}; {LAYOUT}")
    for part in ("backbone", "head"):
        if not isinstance(content.get(part), list) or not content[part]:
            raise BlockError(f"it has no list `{part}`; {LAYOUT}")
    check_evaluated(content)
    for index, row in enumerate([*content["backbone"], *content["head"]]):
        check_row(row, index)


def check_row(row: Any, index: int) -> None:
    """Check one row, whatever its layer is.

    Raises:
        BlockError: it is no row, or asks for more channels than a layer can have.
    """
    if not isinstance(row, list) or len(row) != len(Row.model_fields):
        raise BlockError(f"row {index}: {short(row)} is not a row; accepted: [from, number, module, [arguments]]")
    where = f"row {index} ({row[2]})" if isinstance(row[2], str) else f"row {index}"
    _validate(Row, dict(zip(Row.model_fields, row, strict=True)), where)
    large = [value for value in row[3] if type(value) is int and abs(value) > LARGEST_CHANNELS]
    if large:
        raise BlockError(f"{where}: {large[0]} is too large; accepted: up to {LARGEST_CHANNELS}")


def check_evaluated(content: dict[str, Any]) -> None:
    """Refuse what a host would evaluate as code: YOLOv5 evaluates names and arguments, both evaluate `activation`.

    Raises:
        BlockError: `activation`, a row's module or an argument calls anything but a layer of torch.nn.
    """
    activation = content.get("activation")
    if activation and not (isinstance(activation, str) and _is_harmless(activation)):
        raise BlockError(f"activation: {short(activation)} is not accepted; accepted: a layer such as nn.ReLU()")
    rows = [*(content.get("backbone") or ()), *(content.get("head") or ())]
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) < 4 or not isinstance(row[3], list):
            continue
        if isinstance(row[2], str) and not MODULE.fullmatch(row[2]):
            raise BlockError(f"row {index}: {short(row[2])} is no layer's name; accepted: one such as Conv or nn.ReLU")
        wrong = [value for value in row[3] if isinstance(value, str) and not _is_harmless(value)]
        if wrong:
            raise BlockError(
                f"row {index} ({row[2]}): {short(wrong[0])} is not accepted; accepted: values, names, and layers such "
                "as nn.ReLU()"
            )


def _is_harmless(text: str) -> bool:
    """Return whether evaluating `text` calls nothing but layers of torch.nn; what is no expression is not evaluated."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return True
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    deferred = any(isinstance(node, (ast.Lambda, ast.comprehension, ast.Await)) for node in ast.walk(tree))
    return not deferred and all(LAYER.fullmatch(ast.unparse(call.func)) for call in calls)


def _validate(schema: type[BaseModel], values: dict[str, Any], where: str) -> None:
    try:
        schema(**values)
    except ValidationError as error:
        raise BlockError(f"{where}: {sentence(error, schema)}") from None
