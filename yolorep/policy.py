"""`Policy`: one request for rep blocks, as it is written in a YAML, on a command line and in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from yolorep.blocks.registry import check_options
from yolorep.blocks.starts import STARTS
from yolorep.errors import BlockError
from yolorep.validation import sentence

STOCK_SIZES = (1, 3)  # kernel sizes of YOLOv5's Bottleneck
LARGEST_KERNEL = 31  # as in RepLKNet, arXiv 2203.06717
OF_MODEL = ("block", "identity", "select", "start")  # the options of a request for a whole model
OF_CONV = ("block", "identity", "se")
OF_BOTTLENECK = (*OF_CONV, "k")


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


def _start(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or value not in STARTS):
        raise BlockError(f"start {value!r} is unknown; accepted: {', '.join(STARTS)}")
    return value


def _sizes(value: Any) -> tuple[int, int]:
    sizes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    odd = [type(size) is int and 0 < size <= LARGEST_KERNEL and size % 2 == 1 for size in sizes]
    if len(sizes) != 2 or not all(odd):
        raise BlockError(f"k must be two odd kernel sizes up to {LARGEST_KERNEL}, such as [3, 3]; got {value!r}")
    return sizes


def _selection(value: Any) -> tuple[str | int, ...] | None:
    return None if value is None else entries(value)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Policy:
    """Which branches to add to which convolutions.

    block: a name, with options as in 'mobileone(branches=6)'. identity: as for `Conv_C3`.
    se: squeeze-and-excitation after the sum. k: kernel sizes of each Bottleneck.
    select: name patterns and layer indices; None for all convolutions that gain from the block.
    start: values of the branches before training, one of `yolorep.blocks.starts.STARTS`; None for `silent` on trained
        layers and `paper` on fresh ones.

    No value is converted: `se: 1` is not `se: true`.

    Example:
        >>> Policy.from_yaml({"block": "repvgg", "select": ["model.4.*", 6]}).select
        ('model.4.*', 6)
        >>> Policy.from_yaml("acb").to_yaml()
        {'block': 'acb', 'identity': 'auto'}
    """

    block: Annotated[str, Field(description="a name")] = "repvgg"
    identity: Annotated[str, Field(description="a name")] = "auto"
    se: Annotated[bool, Field(description="true or false")] = False
    k: Annotated[tuple[int, int], BeforeValidator(_sizes)] = STOCK_SIZES
    select: Annotated[tuple[str | int, ...] | None, BeforeValidator(_selection)] = None
    start: Annotated[str | None, BeforeValidator(_start)] = None

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
        try:
            policy = cls(**options)
            if checked:
                check_options(policy.block, policy.identity)
        except ValidationError as error:
            raise BlockError(f"{where}: {sentence(error, cls)}") from None
        except BlockError as error:
            raise BlockError(f"{where}: {error}") from None
        return policy

    def to_yaml(self) -> dict[str, Any]:
        """Return the mapping that `from_yaml` reads; options at their defaults are left out, but block and identity."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        written = {key: value for key, value in values.items() if key in OF_CONV[:2] or value != defaults[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in written.items()}

    @property
    def changes_stock(self) -> bool:
        """Whether the layer differs from the stock layer even when its branches are folded."""
        return self.se or self.k != STOCK_SIZES
