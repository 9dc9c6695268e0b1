"""The names under which blocks are asked for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from yolorep.blocks.laws import LAWS
from yolorep.blocks.linear import MAPS
from yolorep.blocks.site import Site
from yolorep.errors import BlockError

IDENTITIES = ("auto", "conv", *MAPS, "none")

Declaration = Callable[..., dict[str, nn.Module]]


@dataclass(frozen=True)
class Block:
    """What a name stands for. declare: from a `Site`, and the block's options, to branches by name. law: see `LAWS`."""

    declare: Declaration
    law: str

    def branches(self, site: Site) -> dict[str, nn.Module]:
        """The layers beside the dense convolution: `branch_*` add to it, `dense_*` follow it.

        Raises:
            BlockError: they do not fit beside it.
        """
        return self.declare(site)

    @property
    def options(self) -> dict[str, Any]:
        """The options that the declaration takes, with their defaults."""
        parameters = list(inspect.signature(self.declare).parameters.values())[1:]
        return {p.name: p.default for p in parameters}


BLOCKS: dict[str, Block] = {}


def register_block(name: str, *, law: str = "each") -> Callable[[Declaration], Declaration]:
    """Make a declaration available as `block=name`. Its options are keyword parameters with a default.

    Raises:
        BlockError: the name is taken.
    """

    def register(declaration: Declaration) -> Declaration:
        if name in BLOCKS:
            raise BlockError(f"block {name!r} is already registered, by {BLOCKS[name].declare.__module__}")
        BLOCKS[name] = Block(declaration, LAWS[law].name)
        return declaration

    return register


def block_of(spec: str) -> Block:
    """The block of a name, or of a name with options: 'mobileone', 'mobileone(branches=6)'.

    Raises:
        BlockError: no block of that name, or an option that it does not take.
    """
    match = re.fullmatch(r"(\w+)(\(.*)?", spec.strip()) if isinstance(spec, str) else None
    if match is None or match[1] not in BLOCKS:
        raise BlockError(f"block {spec!r} is unknown; accepted: {', '.join(sorted(BLOCKS))}")
    block = BLOCKS[match[1]]
    given = _options(spec, match[2] or "()")
    for key, value in given.items():
        default = block.options.get(key)
        small = isinstance(value, (int, float)) and value < 1
        if default is None or type(value) is not type(default) or small:
            takes = ", ".join(f"{k}={v!r}" for k, v in block.options.items()) or "no option"
            raise BlockError(f"block {spec!r}: {key}={value!r} is not accepted; {match[1]} takes {takes}")
    return Block(partial(block.declare, **given), block.law) if given else block


def check_options(block: str, identity: str) -> None:
    """Raises:
    BlockError: no block or no identity of that name.
    """
    block_of(block)
    if identity not in IDENTITIES:
        raise BlockError(f"identity {identity!r} is unknown; accepted: {', '.join(IDENTITIES)}")


def _options(spec: str, arguments: str) -> dict[str, Any]:
    try:
        call: Any = ast.parse(f"_{arguments}", mode="eval").body
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if call.args or not isinstance(call.func, ast.Name) or len(given) < len(call.keywords):
            raise ValueError
        return given
    except (SyntaxError, ValueError, AttributeError):
        raise BlockError(f"block {spec!r}: options are written as in 'mobileone(branches=6)'") from None
