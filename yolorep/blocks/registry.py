"""The registry of blocks by name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args, get_type_hints

from torch import nn

from yolorep.blocks.declarations import checked_layers
from yolorep.blocks.laws import MASK, Squeeze, law_of
from yolorep.blocks.linear import MAPS
from yolorep.blocks.site import Site
from yolorep.errors import BlockError

IDENTITIES = ("auto", "paper", "conv", *MAPS, "none")

Declaration = Callable[..., dict[str, nn.Module]]


@dataclass(frozen=True)
class Block:
    """A registered block.

    declare: returns the branches by name for a `Site` and the block's options. law: a name in `blocks.laws`.
    name: as registered. trained_start: the start (`blocks.starts`) on trained layers, unless another is requested.
    frozen: whether the dense kernel is not trained.
    """

    declare: Declaration
    law: str
    name: str = ""
    trained_start: str = "silent"
    frozen: bool = False

    @property
    def for_trained(self) -> bool:
        """Whether the block is meant for trained layers alone: it divides or freezes their kernels."""
        return self.frozen or self.trained_start != "silent"

    def branches(self, site: Site, *, of_host: bool = False) -> dict[str, nn.Module]:
        """Return the layers for a site: `branch_*` are added to the dense path, `dense_*` follow the convolution on it.

        of_host: the site is a layer of a host's model, whose kernel must keep its size.

        Raises:
            BlockError: they do not fit the site.
            DeclarationError: the declaration of a user's block is wrong.
        """
        return checked_layers(self.declare, site, self.name, self.law, of_host=of_host)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the declaration, with their defaults."""
        parameters = list(inspect.signature(self.declare).parameters.values())[1:]
        return {p.name: p.default for p in parameters}

    def accepts(self, option: str, value: Any) -> bool:
        """Return whether an option takes a value: of the type of its default, and a number only if it is positive.

        A text is one of those that the option's annotation, a `Literal`, lists. An integer may stand for a float.
        """
        default = self.options.get(option)
        if isinstance(value, bool) or isinstance(default, bool):
            return type(value) is type(default)
        if isinstance(default, float) and isinstance(value, (int, float)):
            return 0 < value < float("inf")
        if isinstance(default, str):
            return value in self.choices(option)
        return type(value) is type(default) and (not isinstance(value, int) or value > 0)

    def choices(self, option: str) -> tuple[Any, ...]:
        """Return the texts that an option takes; empty for an option of another type."""
        if not isinstance(self.options.get(option), str):
            return ()
        function = self.declare.func if isinstance(self.declare, partial) else self.declare
        try:
            return get_args(get_type_hints(function).get(option))
        except (NameError, AttributeError, TypeError):  # annotations that cannot be evaluated, of any of its parameters
            return ()

    def told_options(self) -> str:
        """Return the options with their defaults and choices, for a message."""
        told = (f"{k}={'|'.join(self.choices(k)) or repr(v)}" for k, v in self.options.items())
        return ", ".join(told) or "no option"


BLOCKS: dict[str, Block] = {}
MASKED: dict[str, Block] = {}  # blocks of law `mask`: they add no branch and apply only to whole models
SQUEEZES: dict[str, Squeeze] = {}  # by name of the block


def register_block(
    name: str,
    *,
    law: str = "each",
    squeeze: Squeeze | None = None,
    trained_start: str = "silent",
    frozen: bool = False,
) -> Callable[[Declaration], Declaration]:
    """Register a declaration as `block=name`. Its options are keyword parameters with a default.

    law: how the branches, the convolution and the batch norm are combined (`yolorep.blocks.laws`).
    squeeze: for the law `online`, the combined kernel in closed form. Without it the general algebra computes the
        kernel at every step, which a compiler cannot trace.
    trained_start: values of the branches on trained layers (`yolorep.blocks.starts`), unless others are requested.
    frozen: keep the dense kernel as it is; where it has branches, it becomes a buffer that no optimizer finds.

    Raises:
        BlockError: the name is taken or is no name, an option has no default, or the law is unknown.

    Example:
        >>> @register_block("twice")
        ... def twice(site):
        ...     return {"branch_again": site.conv_bn(site.conv.kernel_size, site.conv.padding)}
        >>> sorted(block_of("twice").options)
        []
        >>> _ = BLOCKS.pop("twice")
    """
    if inspect.isfunction(name):  # the decorator without its parentheses
        raise BlockError(f"@register_block is given no name; accepted: @register_block({name.__name__!r})")
    if law != MASK:
        law_of(law)

    def register(declaration: Declaration) -> Declaration:
        known = {**BLOCKS, **MASKED}
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise BlockError(f"block {name!r} is no name; accepted: letters, digits and underscores")
        if name in known:
            raise BlockError(f"block {name!r} is already registered, by {known[name].declare.__module__}")
        block = Block(declaration, law, name, trained_start, frozen)
        for option, default in block.options.items():
            if default is inspect.Parameter.empty:
                raise BlockError(f"block {name!r}: its option {option!r} has no default; accepted: {option}=VALUE")
            if isinstance(default, str) and default not in block.choices(option):
                raise BlockError(
                    f"block {name!r}: its option {option!r} is a text without choices; accepted: an annotation "
                    f"Literal[{default!r}, ...]"
                )
        (MASKED if law == MASK else BLOCKS)[name] = block
        if squeeze is not None:
            SQUEEZES[name] = squeeze
        return declaration

    return register


def block_of(spec: str) -> Block:
    """Return the block of a name, or of a name with options: 'mobileone(branches=6)', 'csla(scales=learned)'.

    Raises:
        BlockError: an unknown block, or an option that it does not take.

    Example:
        >>> block_of("mobileone(branches=6)").law
        'each'
    """
    match = re.fullmatch(r"(\w+)(\(.*)?", spec.strip()) if isinstance(spec, str) else None
    known = {**BLOCKS, **MASKED}
    if match is None or match[1] not in known:
        accepted = ", ".join(sorted(known))
        raise BlockError(f"block {spec!r} is unknown; accepted: {accepted}; a block of your own with plugin=FILE.py")
    block = known[match[1]]
    given = _options(spec, match[2] or "()")
    for key, value in given.items():
        if not block.accepts(key, value):
            takes = block.told_options()
            raise BlockError(f"block {spec!r}: {key}={value!r} is not accepted; {match[1]} takes {takes}")
    return replace(block, declare=partial(block.declare, **given)) if given else block


def name_of(spec: str) -> str:
    """Return the name of a block without its options.

    Example:
        >>> name_of("mobileone(branches=6)")
        'mobileone'
    """
    return spec.partition("(")[0].strip()


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
        given = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        if call.args or not isinstance(call.func, ast.Name) or len(given) < len(call.keywords):
            raise ValueError
        return given
    except (SyntaxError, ValueError, AttributeError):
        raise BlockError(f"block {spec!r}: options are written as in 'mobileone(branches=6)'") from None


def _value(written: ast.expr) -> Any:
    """Return a value as Python writes it; a text may be without quotes, which command lines take away."""
    return written.id if isinstance(written, ast.Name) else ast.literal_eval(written)
