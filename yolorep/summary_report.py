"""The summary of a model: its records, and how they print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from yolorep.blocks.laws import DENSE_TERM

COLUMNS = ("share", "|\N{GREEK SMALL LETTER GAMMA}|")
LEGEND = (
    "share: norm of a branch's kernel / norm of the folded kernel. |\N{GREEK SMALL LETTER GAMMA}|: mean magnitude of "
    "its last gain. params: trained \N{RIGHTWARDS ARROW} deployed."
)


SMALL = 0.01  # a branch with less than this share of the folded kernel's norm hardly matters


@dataclass(frozen=True)
class Branch:
    """One path of a block: the dense one or a branch.

    share: norm of its kernel / norm of the folded kernel. None: the block does not fold.
    gamma: mean magnitude of its last gain. None: it has none, or the block belongs to another project.
    """

    name: str
    share: float | None
    gamma: float | None


@dataclass(frozen=True)
class Layer:
    """One rep block.

    shape: in, out, kernel and stride, as in '64 to 128, 3x3, stride 2'. parameters, deployed: before and after folding.
    paths: the dense path first; empty for a block of another project.
    problem: why it does not fold; None if it does.
    """

    name: str
    block: str
    shape: str
    parameters: int
    deployed: int
    paths: tuple[Branch, ...] = ()
    problem: str | None = None

    @property
    def branches(self) -> tuple[Branch, ...]:
        return tuple(path for path in self.paths if path.name != DENSE_TERM)

    @property
    def adds(self) -> float | None:
        """The largest share of a branch; None if the block has none, or they are unknown."""
        return max((path.share for path in self.branches if path.share is not None), default=None)


@dataclass(frozen=True)
class Left:
    """Layers without branches, and why."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, repr=False)
class Summary:
    """What `show` found in a model.

    layers: the rep blocks. left: the host's convolutions that have no branches, by reason.
    modules, parameters: of the whole model; (now, deployed).
    """

    model: str
    layers: tuple[Layer, ...]
    left: tuple[Left, ...]
    modules: tuple[int, int]
    parameters: tuple[int, int]

    @property
    def silent(self) -> tuple[Layer, ...]:
        """The blocks whose branches add exactly nothing, as after a silent start without training."""
        return tuple(layer for layer in self.layers if layer.adds == 0)

    @property
    def faint(self) -> tuple[Layer, ...]:
        """The blocks whose branches add something, and less than `SMALL` of the folded kernel."""
        return tuple(layer for layer in self.layers if layer.adds is not None and 0 < layer.adds < SMALL)

    def findings(self) -> tuple[str, ...]:
        """Return what the user should know, a sentence each; empty if branches contribute or there are none."""
        branched = [layer for layer in self.layers if layer.adds is not None]
        result = []
        if self.silent:
            result.append(
                f"the branches of {len(self.silent)} of {len(branched)} blocks add nothing: they start silent and "
                "have not moved from there; the model computes what its dense convolutions do. Train it for longer, "
                "or ask for start=even or start=paper"
            )
        if self.faint:
            result.append(
                f"the branches of {len(self.faint)} of {len(branched)} blocks add less than {SMALL:.0%} of the folded "
                "kernel: they have hardly moved from a silent start"
            )
        return tuple(result)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "findings": list(self.findings())}

    def __rich__(self) -> Any:
        return table(self)

    def __repr__(self) -> str:
        return text(self)


def text(summary: Summary, width: int = 100) -> str:
    """Return the table as plain text of at most `width` columns."""
    file = StringIO()
    Console(file=file, width=width).print(table(summary))
    return file.getvalue().rstrip()


def table(summary: Summary) -> Group:
    """Return what a console prints: a line of totals, the blocks, what is left alone, and the findings."""
    parts: list[Any] = [Text(headline(summary))]
    if summary.layers:
        parts += [_blocks(summary), Text(LEGEND)]
    parts += [Text(f"without branches: {_names(left)}: {left.reason}") for left in summary.left]
    return Group(*parts, *(Text(f"note: {finding}") for finding in summary.findings()))


def headline(summary: Summary) -> str:
    """Return the totals: blocks, layers and parameters, now and deployed."""
    left = sum(len(one.names) for one in summary.left)
    counted = f"{len(summary.layers)} rep blocks, {left} convolutions without branches"
    if not summary.layers:
        counted = f"no rep blocks (stock, or deployed), {left} convolutions"
    arrow = "\N{RIGHTWARDS ARROW}" if summary.layers else ""
    now, after = (f"{count / 1e6:.3f} M" for count in summary.parameters)
    sizes = f"parameters {now} {arrow} {after}, layers {summary.modules[0]} {arrow} {summary.modules[1]}"
    if not arrow:
        sizes = f"parameters {now}, layers {summary.modules[0]}"
    return f"{summary.model}: {counted}; {sizes}"


def _blocks(summary: Summary) -> Table:
    view = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    view.add_column("layer", overflow="fold")
    view.add_column("block, in to out", overflow="fold")
    view.add_column("params", justify="right", no_wrap=True)
    view.add_column("branch", no_wrap=True)
    for column in COLUMNS:
        view.add_column(column, justify="right", no_wrap=True)
    for layer in summary.layers:
        for label, cells in zip(_labels(layer), _paths(layer), strict=True):
            view.add_row(*(Text(cell) for cell in (*label, *cells)))
    return view


def _labels(layer: Layer) -> Iterator[tuple[str, str, str]]:
    sizes = f"{layer.parameters} \N{RIGHTWARDS ARROW} {layer.deployed}"
    yield layer.name, f"{layer.block}, {layer.shape}", sizes
    for _ in layer.paths[1:]:
        yield "", "", ""


def _paths(layer: Layer) -> Iterator[tuple[str, str, str]]:
    if not layer.paths:
        yield "stays: see below" if layer.problem else "folds", "", ""
    for path in layer.paths:
        yield path.name, _share(path), "-" if path.gamma is None else f"{path.gamma:.2f}"


def _share(path: Branch) -> str:
    return "-" if path.share is None else f"{path.share:.1%}"


def _names(left: Left) -> str:
    more = f" and {len(left.names) - 1} more" if len(left.names) > 1 else ""
    return f"{left.names[0]}{more}"
