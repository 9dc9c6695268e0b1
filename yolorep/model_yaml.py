"""Rep rows and the `rep:` policy of a model YAML: what they ask for, and the stock YAML that stands in for them.

A host builds a stock model from the stand-in; the blocks asked for are then grown on its layers (`yolorep.expansion`).
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from yolorep.blocks.registry import check_options
from yolorep.errors import BlockError

STAND_INS = {"Conv_C3": "Conv", "BottleneckRep": "Bottleneck", "C3Rep": "C3", "FC": "Classify"}
FC = "FC"  # a classifier's head, and one of the names that ultralytics tells the task by
K_STOCK = (1, 3)
POLICY = ("block", "identity", "select")  # keys of the `rep:` policy
EQUIVALENT_L2 = "equivalent_l2"  # top-level key: decay the equivalent kernels of the RepVGG blocks


@dataclass(frozen=True)
class Dialect:
    """How a host writes a model YAML.

    anchored: its head row names anchors. sized: its Bottleneck row takes kernel sizes.
    """

    anchored: bool
    sized: bool


YOLOV5 = Dialect(anchored=True, sized=False)
ULTRALYTICS = Dialect(anchored=False, sized=True)


@dataclass(frozen=True)
class Options:
    """Options of a rep row or of a policy. k: kernel sizes of each Bottleneck. select: names, patterns or indices."""

    block: str = "repvgg"
    identity: str = "auto"
    se: bool = False
    k: tuple[int, int] = K_STOCK
    select: tuple[str | int, ...] | None = None

    @property
    def changes_stock(self) -> bool:
        """Whether the layer differs from the stock one even when its branches are folded."""
        return self.se or self.k != K_STOCK


@dataclass
class Plan:
    """A stock model dictionary, and what to grow on the model built from it."""

    stock: dict[str, Any]
    rows: dict[int, tuple[str, Options]] = field(default_factory=dict)
    policy: Options | None = None

    @property
    def is_rep(self) -> bool:
        return bool(self.rows) or self.policy is not None


def plan(model_yaml: dict[str, Any], dialect: Dialect, *, checked: bool = True) -> Plan:
    """Split a model dictionary into the stock dictionary for the host and the blocks that it asks for.

    checked: whether the blocks must be registered.

    Raises:
        BlockError: an unknown option, block or identity; the message names the row.
    """
    stock = deepcopy(model_yaml)
    result = Plan(stock)
    flag(stock.pop(EQUIVALENT_L2, False))  # of its training; nothing is grown for it
    given = stock.pop("rep", None)
    if given is not None:
        result.policy = policy(given, checked=checked)
    for index, row in enumerate(_rows(stock)):
        name, args = row[2], row[3]
        if name in STAND_INS:
            where = f"row {index} ({name})"
            if name == FC and dialect.anchored:
                raise BlockError(f"{where}: YOLOv5 trees build no classifier from a YAML; accepted: ultralytics")
            given = args.pop() if args and isinstance(args[-1], dict) else {}
            options = _options(given, where, _accepted(name), checked)
            result.rows[index] = (name, options)
            row[2], row[3] = _stand_in(name, args, options, dialect)
    if result.is_rep and not dialect.anchored:
        _drop_anchors(stock)
    return result


def policy(given: Any, *, checked: bool = True) -> Options:
    """What the `rep:` key asks for: a mapping of `POLICY`, or for short the name of a block.

    Raises:
        BlockError: an unknown option, block or identity.
    """
    return _options({"block": given} if isinstance(given, str) else given, "rep", POLICY, checked)


def flag(given: Any) -> bool:
    """The value of the `equivalent_l2:` key.

    Raises:
        BlockError: it is neither true nor false.
    """
    if not isinstance(given, bool):
        raise BlockError(f"{EQUIVALENT_L2}: {given!r} is not accepted; accepted: true, false")
    return given


def deployed(model_yaml: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The model dictionary of the deployed model: stock names, no policy.

    A row whose deployed layer no stock row describes (kernel sizes (3, 3), squeeze-and-excitation) keeps its rep name,
    with `block: plain`, and so does FC: rebuilding it needs yolorep, and fails clearly without it instead of building
    another layer.
    """
    split = plan(model_yaml, dialect, checked=False)
    originals = _rows(model_yaml)
    for index, row in enumerate(_rows(split.stock)):
        name, options = split.rows.get(index, ("", Options()))
        if name == FC:
            row[2] = FC
        elif name and options.changes_stock and not (dialect.sized and name == "BottleneckRep" and not options.se):
            args = [a for a in deepcopy(originals[index][3]) if not isinstance(a, dict)]
            extra: dict[str, Any] = {"block": "plain", "identity": "none"}
            extra |= {"k": list(options.k)} if options.k != K_STOCK else {}
            extra |= {"se": True} if options.se else {}
            row[2], row[3] = name, [*args, extra]
    if "yaml_file" in split.stock:
        split.stock["yaml_file"] = stock_name(str(split.stock["yaml_file"]))
    return split.stock


def stock_name(yaml_file: str) -> str:
    """The name of the stock model that a rep YAML deploys to: yolov5n-rep.yaml is yolov5n.yaml."""
    return re.sub(r"-rep(?![a-z])", "", yaml_file)


def _rows(model_yaml: dict[str, Any]) -> list[list[Any]]:
    return [*model_yaml.get("backbone", ()), *model_yaml.get("head", ())]


def _accepted(name: str) -> tuple[str, ...]:
    if name == FC:
        return ()
    return ("block", "identity", "se") if name == "Conv_C3" else ("block", "identity", "se", "k")


def _options(given: Any, where: str, accepted: tuple[str, ...], checked: bool) -> Options:
    if not isinstance(given, dict):
        raise BlockError(f"{where}: options must be a mapping, got {given!r}; accepted keys: {', '.join(accepted)}")
    unknown = sorted(set(given) - set(accepted), key=str)  # a YAML may have other keys than text
    if unknown:
        raise BlockError(f"{where}: unknown option {', '.join(map(repr, unknown))}; accepted: {', '.join(accepted)}")
    options = dict(given)
    for key in ("k", "select"):
        if options.get(key) is not None:
            options[key] = tuple(options[key]) if isinstance(options[key], (list, tuple)) else (options[key],)
    sizes = options.get("k", K_STOCK) or ()
    if len(sizes) != 2 or not all(isinstance(k, int) and k % 2 for k in sizes):
        raise BlockError(f"{where}: k must be two odd kernel sizes, such as [3, 3]; got {given['k']!r}")
    result = Options(**options)
    if not checked:
        return result
    try:
        check_options(result.block, result.identity)
    except BlockError as error:
        raise BlockError(f"{where}: {error}") from None
    return result


def _stand_in(name: str, args: list[Any], options: Options, dialect: Dialect) -> tuple[str, list[Any]]:
    if name == "Conv_C3" and len(args) == 1:
        args = [*args, 3]  # Conv_C3 is 3x3 where its kernel size is not given, the stock Conv is 1x1
    if name == "BottleneckRep" and dialect.sized:
        given = args[1:4]
        shortcut, groups, expansion = given + [True, 1, 0.5][len(given) :]
        args = [args[0], shortcut, groups, list(options.k), expansion]
    return STAND_INS[name], args


def _drop_anchors(stock: dict[str, Any]) -> None:
    for row in _rows(stock):
        row[3] = [a for a in row[3] if a != "anchors"]
