"""The registry of blocks by name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from yolorep.blocks.laws import Squeeze, law_of
from yolorep.blocks.linear import MAPS
from yolorep.blocks.site import Site
from yolorep.errors import BlockError

IDENTITIES = ("auto", "conv", *MAPS, "none")

Declaration = Callable[..., dict[str, nn.Module]]


@dataclass(frozen=True)
class Block:
    """A registered block.

    declare: returns the branches by name for a `Site` and the block's options. law: a name in `blocks.laws`.
    """

    declare: Declaration
    law: str

    def branches(self, site: Site) -> dict[str, nn.Module]:
        """Return the layers for a site: `branch_*` are added to the dense path, `dense_*` follow the convolution on it.

        Raises:
            BlockError: they do not fit the site.
        """
        return self.declare(site)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the declaration, with their defaults."""
        parameters = list(inspect.signature(self.declare).parameters.values())[1:]
        return {p.name: p.default for p in parameters}


BLOCKS: dict[str, Block] = {}
SQUEEZES: dict[str, Squeeze] = {}  # by name of the block


def register_block(
    name: str, *, law: str = "each", squeeze: Squeeze | None = None
) -> Callable[[Declaration], Declaration]:
    """Register a declaration as `block=name`. Its options are keyword parameters with a default.

    law: how the branches, the convolution and the batch norm are combined (`yolorep.blocks.laws`).
    squeeze: for the law `online`, the combined kernel in closed form. Without it the general algebra computes the
        kernel at every step, which a compiler cannot trace.

    Raises:
        BlockError: the name is taken, or the law is unknown.

    Example:
        >>> @register_block("twice")
        ... def twice(site):
        ...     return {"branch_again": site.conv_bn(site.conv.kernel_size, site.conv.padding)}
        >>> sorted(block_of("twice").options)
        []
        >>> _ = BLOCKS.pop("twice")
    """
    known = law_of(law)

    def register(declaration: Declaration) -> Declaration:
        if name in BLOCKS:
            raise BlockError(f"block {name!r} is already registered, by {BLOCKS[name].declare.__module__}")
        BLOCKS[name] = Block(declaration, known.name)
        if squeeze is not None:
            SQUEEZES[name] = squeeze
        return declaration

    return register


def block_of(spec: str) -> Block:
    """Return the block of a name, or of a name with options: 'mobileone', 'mobileone(branches=6)'.

    Raises:
        BlockError: an unknown block, or an option that it does not take.

    Example:
        >>> block_of("mobileone(branches=6)").law
        'each'
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
    """Check the names of a block and of an identity.

    Raises:
        BlockError: one of them is unknown.
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
