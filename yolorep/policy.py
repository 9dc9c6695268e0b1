"""`Policy`: one request for rep blocks, as it is written in a YAML, on a command line and in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from yolorep.blocks.registry import check_options
from yolorep.blocks.starts import STARTS
from yolorep.errors import BlockError

STOCK_SIZES = (1, 3)  # kernel sizes of YOLOv5's Bottleneck
LARGEST_KERNEL = 31  # as in RepLKNet, arXiv 2203.06717
OF_MODEL = ("block", "identity", "select", "start")  # the options of a request for a whole model
OF_CONV = ("block", "identity", "se")
OF_BOTTLENECK = (*OF_CONV, "k")


@dataclass(frozen=True)
class Policy:
    """Which branches to add to which convolutions.

    block: a name, with options as in 'mobileone(branches=6)'. identity: as for `Conv_C3`.
    se: squeeze-and-excitation after the sum. k: kernel sizes of each Bottleneck.
    select: name patterns and layer indices; None for all convolutions that gain from the block.
    start: values of the branches before training, one of `yolorep.blocks.starts.STARTS`; None for `silent` on trained
        layers and `paper` on fresh ones.

    Example:
        >>> Policy.from_yaml({"block": "repvgg", "select": ["model.4.*", 6]}).select
        ('model.4.*', 6)
        >>> Policy.from_yaml("acb").to_yaml()
        {'block': 'acb', 'identity': 'auto'}
    """

    block: str = "repvgg"
    identity: str = "auto"
    se: bool = False
    k: tuple[int, int] = STOCK_SIZES
    select: tuple[str | int, ...] | None = None
    start: str | None = None

    @classmethod
    def from_yaml(
        cls, given: Any, where: str = "rep", accepted: Sequence[str] = OF_MODEL, *, checked: bool = True
    ) -> Policy:
        """Read the value of a `rep:` key or the options of a row.

        given: a mapping, or for short the name of a block. where: how messages name it. accepted: its options.
        checked: whether the block must be registered.

        Raises:
            BlockError: an unknown option, block or identity, or a value of another type.
        """
        options = {"block": given} if isinstance(given, str) and "block" in accepted else given
        if not isinstance(options, dict):
            raise BlockError(f"{where}: options must be a mapping, got {given!r}; accepted keys: {', '.join(accepted)}")
        unknown = sorted(set(options) - set(accepted), key=str)  # a YAML may have other keys than text
        if unknown:
            raise BlockError(
                f"{where}: unknown option {', '.join(map(repr, unknown))}; accepted: {', '.join(accepted)}"
            )
        policy = cls(**{key: _READERS[key](value, where) for key, value in options.items()})
        if checked:
            try:
                check_options(policy.block, policy.identity)
            except BlockError as error:
                raise BlockError(f"{where}: {error}") from None
        return policy

    def to_yaml(self) -> dict[str, Any]:
        """Return the mapping that `from_yaml` reads; options at their defaults are left out, but block and identity."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        told = {key: value for key, value in values.items() if key in OF_CONV[:2] or value != defaults[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}

    @property
    def changes_stock(self) -> bool:
        """Whether the layer differs from the stock layer even when its branches are folded."""
        return self.se or self.k != STOCK_SIZES


def entries(select: Any) -> tuple[str | int, ...]:
    """Return one entry of `select`, or several, as a tuple of name patterns and layer indices.

    Raises:
        BlockError: an entry is neither.
    """
    result = tuple(select) if isinstance(select, (list, tuple, set, frozenset)) else (select,)
    wrong = [entry for entry in result if isinstance(entry, bool) or not isinstance(entry, (str, int))]
    if wrong:
        raise BlockError(f"select: {wrong[0]!r} is neither a layer index nor a name pattern")
    return result


def _text(name: str) -> Any:
    def read(value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise BlockError(f"{where}: {name} must be a name, got {value!r}")
        return value

    return read


def _start(value: Any, where: str) -> str | None:
    if value is not None and value not in STARTS:
        raise BlockError(f"{where}: start {value!r} is unknown; accepted: {', '.join(STARTS)}")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise BlockError(f"{where}: se must be true or false, got {value!r}")
    return value


def _sizes(value: Any, where: str) -> tuple[int, int]:
    sizes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    odd = [type(size) is int and 0 < size <= LARGEST_KERNEL and size % 2 == 1 for size in sizes]
    if len(sizes) != 2 or not all(odd):
        raise BlockError(
            f"{where}: k must be two odd kernel sizes up to {LARGEST_KERNEL}, such as [3, 3]; got {value!r}"
        )
    return sizes


def _selection(value: Any, where: str) -> tuple[str | int, ...] | None:
    if value is None:
        return None
    try:
        return entries(value)
    except BlockError as error:
        raise BlockError(f"{where}: {error}") from None


_READERS = {
    "block": _text("block"),
    "identity": _text("identity"),
    "se": _flag,
    "k": _sizes,
    "select": _selection,
    "start": _start,
}
