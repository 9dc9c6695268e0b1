"""Rep rows and the `rep:` policy of a model YAML, and the stock YAML that stands in for them.

A host builds the stock model from the stand-in. The requested blocks are then grown on its layers
(`yolorep.expansion`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from yolorep.errors import BlockError
from yolorep.given_scales import SCALES, GivenScales
from yolorep.host import Host, own_classes
from yolorep.late_request import LATE, LateRequest, is_begun
from yolorep.policy import OF_BOTTLENECK, OF_CONV, STOCK_SIZES, Policy
from yolorep.row_schema import (
    BottleneckArguments,
    ConvArguments,
    HeadArguments,
    check_arguments,
    check_row,
)

FC = "FC"  # a classifier's head, and one of the names from which ultralytics derives the task
EQUIVALENT_L2 = "equivalent_l2"  # top-level key: decay the equivalent kernels of the RepVGG blocks
GAIN_LR = "gain_lr"  # top-level key: multiply the learning rate of the branches' gains
OF_LATE = (LATE, SCALES, EQUIVALENT_L2, GAIN_LR)  # what a request to expand in the middle of a run may consist of
OURS = "yolorep."  # before a row's name: yolorep's block, also where the host has a class of that name
Args = list[Any]


@dataclass(frozen=True)
class RowKind:
    """A kind of rep row.

    stock: name of the stock layer with the same arguments. arguments: the values that these may have.
    options: those that its last argument, a mapping, may have.
    inside: pattern of the names of its convolutions that get branches.
    stand_in: arguments of the stock row.
    as_stock: whether a stock row describes the deployed layer, for these options and this host.
    """

    stock: str
    arguments: type[BaseModel]
    options: tuple[str, ...]
    inside: str = "*"
    stand_in: Callable[[Args, Policy, Host], Args] = lambda args, policy, host: args
    as_stock: Callable[[Policy, Host], bool] = lambda policy, host: not policy.changes_stock

    @property
    def has_bottlenecks(self) -> bool:
        """Whether the layer is or contains bottlenecks, whose kernel sizes can be chosen."""
        return "k" in self.options


def _conv_args(args: Args, policy: Policy, host: Host) -> Args:
    """Conv_C3 is 3x3 by default, the stock Conv 1x1."""
    return [*args, 3] if len(args) == 1 else args


def _bottleneck_args(args: Args, policy: Policy, host: Host) -> Args:
    if not host.sized_bottlenecks:
        return args
    given = args[1:4]
    shortcut, groups, expansion = given + [True, 1, 0.5][len(given) :]
    return [args[0], shortcut, groups, list(policy.k), expansion]


ROW_KINDS = {
    "Conv_C3": RowKind("Conv", ConvArguments, OF_CONV, stand_in=_conv_args),
    "BottleneckRep": RowKind(
        "Bottleneck",
        BottleneckArguments,
        OF_BOTTLENECK,
        stand_in=_bottleneck_args,
        as_stock=lambda policy, host: not policy.se and (host.sized_bottlenecks or policy.k == STOCK_SIZES),
    ),
    "C3Rep": RowKind("C3", BottleneckArguments, OF_BOTTLENECK, inside="*m.*"),
    FC: RowKind("Classify", HeadArguments, (), as_stock=lambda policy, host: False),
}


@dataclass
class Plan:
    """A stock model dictionary, and what to grow on the model that a host builds from it.

    rows: by index of the layer, the name of the row kind and its options. policy: for the whole model.
    scales: constants of its 1x1 kernels.
    """

    stock: dict[str, Any]
    rows: dict[int, tuple[str, Policy]] = field(default_factory=dict)
    policy: Policy | None = None
    scales: GivenScales | None = None

    @property
    def is_rep(self) -> bool:
        return bool(self.rows) or self.policy is not None


def plan(model_yaml: dict[str, Any], host: Host, *, checked: bool = True, taken: frozenset[str] | None = None) -> Plan:
    """Split a model dictionary into the stock dictionary for the host and the requested blocks.

    checked: whether the blocks must be registered. taken: names of rows that are classes of the host; by default those
        of the host as it is imported here.

    Raises:
        BlockError: an unknown option, block or identity, or arguments that a row does not take; the message names the
            row.
    """
    stock = deepcopy(model_yaml)
    result = Plan(stock)
    flag(stock.pop(EQUIVALENT_L2, False))  # concerns training alone, as the next
    factor(stock.pop(GAIN_LR, 1))
    LateRequest.of(stock, checked=checked and not is_begun(stock))  # checked where the run is resumed
    stock.pop(LATE, None)
    result.scales = GivenScales.of(stock)
    stock.pop(SCALES, None)
    given = stock.pop("rep", None)
    if result.scales is not None and given is None and LATE not in model_yaml:
        raise BlockError(f"{SCALES} is for the blocks of rep or {LATE}, and neither is given; accepted: one of them")
    if given is not None:
        result.policy = Policy.from_yaml(given, checked=checked)
    taken = own_classes(host, ROW_KINDS) if taken is None else taken
    for index, row in enumerate(_rows(stock)):
        name = _kind(row, taken)
        if name is not None:
            result.rows[index] = (name, _stand_in_(row, index, name, host, checked=checked))
    if result.is_rep and not host.anchors_in_head:
        _drop_anchors(stock)
    return result


def without_earlier(model_yaml: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model dictionary without the request of an earlier run to expand in its middle.

    What was to be trained with the branches goes with a request that was not met: constants and optimizer settings.

    Example:
        >>> without_earlier({"nc": 3, "gain_lr": 4, "rep_late": {"block": "acb", "from": 0.66, "begun": True}})
        {'nc': 3}
    """
    met = (LATE,) if model_yaml.get("rep") is not None else ()
    dropped = OF_LATE if is_begun(model_yaml) else met
    return {key: value for key, value in model_yaml.items() if key not in dropped}


def earlier_line(model_yaml: Mapping[str, Any]) -> str | None:
    """Return what to say of the request that `without_earlier` drops before it was met; None if there is none.

    Example:
        >>> earlier_line({"gain_lr": 4, "rep_late": {"block": "acb", "from": 0.66, "begun": True}})
        'a request of an earlier run is dropped: rep_late, gain_lr; to repeat it, give rep= and rep_from='
    """
    dropped = ", ".join(key for key in OF_LATE if key in model_yaml)
    told = f"a request of an earlier run is dropped: {dropped}; to repeat it, give rep= and rep_from="
    return told if is_begun(model_yaml) else None


def taken_names(model_yaml: dict[str, Any], host: Host) -> list[str]:
    """Return the names of yolorep's rows that rows of the model dictionary have and that are classes of its host."""
    taken = own_classes(host, ROW_KINDS)
    written = [row[2] for row in _rows(model_yaml) if isinstance(row, list) and len(row) > 2]
    return sorted({name for name in written if isinstance(name, str) and name in taken})


def _kind(row: Any, taken: frozenset[str]) -> str | None:
    """Return the kind of a rep row; None for a row of the host. taken: names that are classes of the host."""
    name = row[2] if isinstance(row, list) and len(row) > 2 else None
    if not isinstance(name, str) or name in taken:
        return None
    kind = name.removeprefix(OURS)
    return kind if kind in ROW_KINDS else None


def _stand_in_(row: list[Any], index: int, name: str, host: Host, *, checked: bool) -> Policy:
    """Turn a rep row into the stock row that stands in for it; return what to grow on it."""
    kind, where = ROW_KINDS[name], f"row {index} ({row[2]})"
    if name == FC and not host.yaml_classifiers:
        raise BlockError(f"{where}: YOLOv5 trees build no classifier from a YAML; accepted: ultralytics")
    check_row(row, index)
    args = row[3]
    options = args.pop() if args and isinstance(args[-1], dict) else {}
    policy = Policy.from_yaml(options, where, kind.options, checked=checked)
    check_arguments(kind.arguments, args, where)
    row[2], row[3] = kind.stock, kind.stand_in(args, policy, host)
    return policy


def flag(given: Any) -> bool:
    """Return the value of the `equivalent_l2:` key.

    Raises:
        BlockError: it is neither true nor false.
    """
    if not isinstance(given, bool):
        raise BlockError(f"{EQUIVALENT_L2}: {given!r} is not accepted; accepted: true, false")
    return given


def factor(given: Any) -> float:
    """Return the value of the `gain_lr:` key.

    Raises:
        BlockError: it is not a positive number.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < math.inf:
        raise BlockError(f"{GAIN_LR}: {given!r} is not accepted; accepted: a positive number, such as 10")
    return float(given)


def deployed(model_yaml: dict[str, Any], host: Host) -> dict[str, Any]:
    """Return the model dictionary of the deployed model: stock names, no policy.

    A row whose deployed layer no stock row describes (kernel sizes (3, 3), squeeze-and-excitation) keeps its rep name,
    with `block: plain`, and so does FC: rebuilding it needs yolorep, and fails clearly without it instead of building
    another layer.
    """
    split = plan(model_yaml, host, checked=False)
    originals, rows = _rows(model_yaml), _rows(split.stock)
    for index, (name, policy) in split.rows.items():
        kind = ROW_KINDS[name]
        if kind.as_stock(policy, host):
            continue
        rows[index][2] = originals[index][2]
        if kind.options:
            args = [argument for argument in deepcopy(originals[index][3]) if not isinstance(argument, dict)]
            rows[index][3] = [*args, Policy("plain", "none", policy.se, policy.k).to_yaml()]
    if "yaml_file" in split.stock:
        split.stock["yaml_file"] = stock_name(str(split.stock["yaml_file"]))
    return split.stock


def stock_name(yaml_file: str) -> str:
    """Return the name of the stock model that a rep YAML deploys to.

    Example:
        >>> stock_name("yolov5n-rep.yaml")
        'yolov5n.yaml'
    """
    return re.sub(r"-rep(?![a-z])", "", yaml_file)


def sections(model_yaml: Mapping[str, Any]) -> dict[str, range]:
    """Return the indices of the layers of a model's backbone, neck and head; empty for a dictionary without a head.

    The backbone is the list of that name. The head is the last row, and the neck the rows between.

    Example:
        >>> sections({"backbone": ["row", "row"], "head": ["row", "row"]})
        {'backbone': range(0, 2), 'neck': range(2, 3), 'head': range(3, 4)}
    """
    backbone, head = (len(model_yaml.get(key) or ()) for key in ("backbone", "head"))
    last = backbone + head - 1
    if not head:
        return {}
    return {"backbone": range(backbone), "neck": range(backbone, last), "head": range(last, last + 1)}


def _rows(model_yaml: dict[str, Any]) -> list[Any]:
    parts = (model_yaml.get("backbone"), model_yaml.get("head"))
    return [row for part in parts if isinstance(part, list) for row in part]


def _drop_anchors(stock: dict[str, Any]) -> None:
    """Take `anchors` out of the arguments of rows; a row of another form is left to the host, which refuses it."""
    for row in _rows(stock):
        if isinstance(row, list) and len(row) > 3 and isinstance(row[3], list):
            row[3] = [argument for argument in row[3] if argument != "anchors"]
