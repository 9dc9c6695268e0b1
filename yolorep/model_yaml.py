"""Rep rows and the `rep:` policy of a model YAML, and the stock YAML that stands in for them.

A host builds the stock model from the stand-in. The requested blocks are then grown on its layers
(`yolorep.expansion`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from yolorep.errors import BlockError
from yolorep.host import Host
from yolorep.policy import OF_BOTTLENECK, OF_CONV, STOCK_SIZES, Policy

FC = "FC"  # a classifier's head, and one of the names by which ultralytics tells the task
EQUIVALENT_L2 = "equivalent_l2"  # top-level key: decay the equivalent kernels of the RepVGG blocks
LARGEST_CHANNELS = 2**16
Args = list[Any]


@dataclass(frozen=True)
class RowKind:
    """A kind of rep row.

    stock: name of the stock layer with the same arguments. options: those that its last argument, a mapping, may have.
    inside: pattern of the names of its convolutions that get branches.
    stand_in: arguments of the stock row.
    as_stock: whether a stock row describes the deployed layer, for these options and this host.
    """

    stock: str
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
    "Conv_C3": RowKind("Conv", OF_CONV, stand_in=_conv_args),
    "BottleneckRep": RowKind(
        "Bottleneck",
        OF_BOTTLENECK,
        stand_in=_bottleneck_args,
        as_stock=lambda policy, host: not policy.se and (host.sized_bottlenecks or policy.k == STOCK_SIZES),
    ),
    "C3Rep": RowKind("C3", OF_BOTTLENECK, inside="*m.*"),
    FC: RowKind("Classify", (), as_stock=lambda policy, host: False),
}


@dataclass
class Plan:
    """A stock model dictionary, and what to grow on the model that a host builds from it.

    rows: by index of the layer, the name of the row kind and its options. policy: for the whole model.
    """

    stock: dict[str, Any]
    rows: dict[int, tuple[str, Policy]] = field(default_factory=dict)
    policy: Policy | None = None

    @property
    def is_rep(self) -> bool:
        return bool(self.rows) or self.policy is not None


def plan(model_yaml: dict[str, Any], host: Host, *, checked: bool = True) -> Plan:
    """Split a model dictionary into the stock dictionary for the host and the requested blocks.

    checked: whether the blocks must be registered.

    Raises:
        BlockError: an unknown option, block or identity, or arguments that a row does not take; the message names the
            row.
    """
    stock = deepcopy(model_yaml)
    result = Plan(stock)
    flag(stock.pop(EQUIVALENT_L2, False))  # concerns training alone
    given = stock.pop("rep", None)
    if given is not None:
        result.policy = Policy.from_yaml(given, checked=checked)
    for index, row in enumerate(_rows(stock)):
        name = row[2] if isinstance(row, list) and len(row) > 2 else None
        if not isinstance(name, str) or name not in ROW_KINDS:
            continue
        kind, where = ROW_KINDS[name], f"row {index} ({name})"
        if name == FC and not host.yaml_classifiers:
            raise BlockError(f"{where}: YOLOv5 trees build no classifier from a YAML; accepted: ultralytics")
        args = _arguments(row, where)
        options = args.pop() if args and isinstance(args[-1], dict) else {}
        policy = Policy.from_yaml(options, where, kind.options, checked=checked)
        _check_arguments(args, where)
        result.rows[index] = (name, policy)
        row[2], row[3] = kind.stock, kind.stand_in(args, policy, host)
    if result.is_rep and not host.anchors_in_head:
        _drop_anchors(stock)
    return result


def flag(given: Any) -> bool:
    """Return the value of the `equivalent_l2:` key.

    Raises:
        BlockError: it is neither true nor false.
    """
    if not isinstance(given, bool):
        raise BlockError(f"{EQUIVALENT_L2}: {given!r} is not accepted; accepted: true, false")
    return given


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
        rows[index][2] = name
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


def _rows(model_yaml: dict[str, Any]) -> list[Any]:
    return [*(model_yaml.get("backbone") or ()), *(model_yaml.get("head") or ())]


def _arguments(row: list[Any], where: str) -> Args:
    if len(row) != 4 or not isinstance(row[3], list):
        raise BlockError(f"{where}: {row!r} is not a row; accepted: [from, number, module, [arguments]]")
    return row[3]


def _check_arguments(args: Args, where: str) -> None:
    """Check the channels of a rep row; further arguments are the stock layer's.

    Raises:
        BlockError: there are none, or they are not a number of channels.
    """
    channels = args[0] if args else None
    if where.endswith(f"({FC})"):
        return
    if type(channels) is not int or not 0 < channels <= LARGEST_CHANNELS:
        got = "no arguments" if not args else repr(channels)
        raise BlockError(f"{where}: the first argument is the number of output channels, an integer; got {got}")
    if len(args) > 7:
        raise BlockError(f"{where}: {len(args)} arguments; accepted: at most 7 and the options")


def _drop_anchors(stock: dict[str, Any]) -> None:
    for row in _rows(stock):
        row[3] = [argument for argument in row[3] if argument != "anchors"]
