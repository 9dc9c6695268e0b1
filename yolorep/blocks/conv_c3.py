"""`Conv_C3`: YOLO's convolution + batch norm + activation with extra branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from yolorep.algebra import Kernel, as_pair
from yolorep.blocks.laws import DENSE_TERM, MASK, Parts, Term, law_of
from yolorep.blocks.registry import SQUEEZES, block_of, check_options, name_of
from yolorep.blocks.site import Site
from yolorep.blocks.starts import DENSE, gain_of, silence_
from yolorep.blocks.twin import freeze_, trainable_weight
from yolorep.errors import BlockError, FoldError
from yolorep.folding import chain_of, children_kernels, kernel_of, to_conv
from yolorep.overrides import overridden

BRANCH = "branch_"
Size = int | tuple[int, int]
Result = TypeVar("Result")


class Conv_C3(nn.Module):
    """y = act(BN(conv(x)) + the extra branches of the block), (batch, c1, h, w) to (batch, c2, h', w').

    Some blocks normalize after the sum instead: `yolorep.blocks.laws` describes the three forms.

    The dense branch has YOLO's own names, `conv` and `bn`, so that a stock state dict loads. Branches that the state
    dict does not contain are then silenced, so that the block computes what the stock layer computed.
    `_switch_to_deploy` leaves one convolution and `act`.

    c1, c2: input and output channels. k: kernel size, odd. s: stride. p: padding, 'same' if None. g: groups.
    d: dilation. k, s, p and d may be pairs (vertical, horizontal). act: True for SiLU, False or None for no activation,
    or a module.
    block: name of a block (`yolorep blocks` lists them), with options as in 'mobileone(branches=6)'.
    identity: how the input reaches the output where their shapes differ: 'auto', 'paper', 'conv', 'average', 'select',
    'interpolate' or 'none'. se: squeeze-and-excitation after the sum (arXiv 1709.01507), which stays when the branches
    are folded.

    Raises:
        BlockError: an unknown block, identity or activation, or a shape that the branches do not fit.

    Example:
        >>> import torch
        >>> block = Conv_C3(8, 16, s=2).eval()
        >>> x = torch.rand(1, 8, 6, 6)
        >>> before = block(x)
        >>> block._switch_to_deploy()
        >>> torch.allclose(block(x), before, atol=1e-5)
        True
    """

    default_act: nn.Module = nn.SiLU()
    law = "each"
    # Train all branches in one step that keeps less memory (`training.joint`): True, False (each branch separately), or
    # None, which decides by device and size of the input.
    joint: bool | None = None

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Size = 3,
        s: Size = 1,
        p: Size | None = None,
        g: int = 1,
        d: Size = 1,
        act: bool | nn.Module | None = True,
        *,
        block: str = "repvgg",
        identity: str = "auto",
        se: bool = False,
    ) -> None:
        check_options(block, identity)
        super().__init__()
        padding = same_padding(k, d) if p is None else p
        self.conv = _conv(c1, c2, k, s, padding, g, d)
        self.bn = nn.BatchNorm2d(c2)
        activation = self._activation(act)
        self.act = excited(activation, c2) if se else activation
        declared = block_of(block)
        if declared.law == MASK:
            raise BlockError(f"block {block!r} adds no branch: it is a way to train a stock layer; accepted in rep=")
        self.attach_(declared.branches(Site(self.conv, self.bn, identity)), block, identity, declared.law)

    @classmethod
    def _activation(cls, act: bool | nn.Module | None) -> nn.Module:
        if isinstance(act, nn.Module):
            return act
        if act is not None and not isinstance(act, bool):
            raise BlockError(f"act={act!r} is not an activation; accepted: True ({cls.default_act}), False, a module")
        return cls.default_act if act else nn.Identity()

    def attach_(self, layers: Mapping[str, nn.Module], block: str, identity: str, law: str) -> None:
        """Add the declared layers beside `conv` and `bn`, and record the request."""
        for name, layer in layers.items():
            self.add_module(name, layer)
        if layers and block_of(block).frozen:
            freeze_(self.conv)
        self.block, self.identity, self.law = block, identity, law

    def forward(self, x: Tensor) -> Tensor:
        if self.deployed:
            return self.act(self.conv(x))
        squeeze = SQUEEZES.get(name_of(self.block))
        return self.act(law_of(self.law).forward(self._parts(), x, self.joint, squeeze))

    @property
    def deployed(self) -> bool:
        """Whether the branches and the batch norm have been folded into `conv`."""
        return "bn" not in self._modules

    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the extra branches by name, without the dense one."""
        return self._named(BRANCH)

    def _named(self, *prefixes: str) -> Iterator[tuple[str, nn.Module]]:
        return ((name, module) for name, module in self._modules.items() if name.startswith(prefixes))  # type: ignore[misc]

    def linear_kernel(self) -> Kernel:
        """Return everything before `act` as one float64 kernel.

        Raises:
            FoldError: a branch does not fold; the message begins with the path of the layer at fault.
        """
        own = overridden(self, Conv_C3)
        if own:
            raise FoldError(f"{type(self).__name__} is a Conv_C3 with a forward of its own ({own}), linear or not")
        if self.deployed:
            return chain_of([("conv", self.conv)])
        return law_of(self.law).kernel(self._parts())

    def terms(self) -> list[Term]:
        """Return the float64 kernel of the dense branch, and of each extra one, by name: what each adds to the output.

        Raises:
            FoldError: as `linear_kernel`.
        """
        return law_of(self.law).terms(self._parts())

    def gains(self) -> dict[str, Tensor | None]:
        """Return the last gain of each path by the names of `terms`: a batch norm's gamma or a learned scale.

        None where a path has no gain of its own, as the dense one of a block with one batch norm after the sum.
        """
        dense = [self.bn] if self.law == "each" else [layer for _, layer in self._named(DENSE)]
        layers = {DENSE_TERM: dense, **{name: [branch] for name, branch in self.branches()}}
        return {name: gain_of(*path) for name, path in layers.items()}

    def _parts(self) -> Parts:
        return Parts(self.conv, self.bn, dict(self._named(BRANCH)), dict(self._named(DENSE)))

    def _switch_to_deploy(self) -> None:
        """Replace the branches by one equal convolution, in place. Calling it again does nothing.

        Hooks on the block itself stay. Hooks on layers inside are refused, since they would be lost.

        Raises:
            FoldError: the block is in training mode, hooked inside, or does not fold; it is then unchanged.
        """
        switch_(self)

    def drop_branches_(self) -> None:
        """Remove all layers but `conv` and `act`."""
        for name in ("bn", *dict(self._named(BRANCH, DENSE))):
            self._modules.pop(name, None)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        recorded = [state_dict.get(f"{prefix}bn.running_{name}") for name in ("mean", "var")]
        # Look for the batch norm: a host leaves the kernel out if it adapts it to another number of input channels.
        here = all(value is not None and value.shape == self.conv.weight.shape[:1] for value in recorded)
        for name, layer in self._named(BRANCH, DENSE) if here else ():
            own = f"{prefix}{name}."
            if layer.state_dict() and not any(key.startswith(own) for key in state_dict):
                silence_({name: layer}, *recorded)  # type: ignore[arg-type]
                # To the caller's copy, so that a strict load does not report keys that the checkpoint cannot hold.
                state_dict.update({own + key: value for key, value in layer.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return "deployed" if self.deployed else f"block={self.block}, identity={self.identity}"


@kernel_of.register
def _(module: Conv_C3) -> Kernel:
    if not isinstance(module.act, nn.Identity):
        raise FoldError(f"{type(module.act).__name__} is not linear; _switch_to_deploy() folds up to it", "act")
    children_kernels([("act", module.act)])  # refuses a subclass that is not an identity
    return module.linear_kernel()


def switch_(root: nn.Module) -> None:
    """Fold every `Conv_C3` in `root`, itself included, in place; all of them or, on an error, none.

    Raises:
        FoldError: a block does not fold; the message begins with its path.
    """
    for block, conv in converted(root, lambda block: to_conv(block.linear_kernel(), like=trainable_weight(block.conv))):
        block.drop_branches_()
        block.conv = conv.train(block.training)


def converted(root: nn.Module, convert: Callable[[Conv_C3], Result]) -> list[tuple[Conv_C3, Result]]:
    """Return every `Conv_C3` in `root` that still has its branches, with the result of `convert`; change nothing.

    Raises:
        FoldError: a block does not fold; the message begins with its path.
    """
    result = []
    for path, block in root.named_modules():
        if isinstance(block, Conv_C3) and not block.deployed:
            try:
                result.append((block, convert(block)))
            except FoldError as error:
                raise (error.within(path) if path else error) from None
    return result


def excited(activation: nn.Module, channels: int) -> nn.Sequential:
    """Return squeeze-and-excitation with a reduction of 16, followed by `activation`."""
    from torchvision.ops import SqueezeExcitation  # only here: torchvision is not light

    return nn.Sequential(SqueezeExcitation(channels, max(channels // 16, 1)), activation)


def same_padding(k: Size, d: Size = 1) -> tuple[int, int]:
    """Return the padding that keeps the size at stride 1.

    Example:
        >>> same_padding(3), same_padding((1, 5), 2)
        ((1, 1), (0, 4))
    """
    pairs = zip(as_pair(k), as_pair(d), strict=True)
    vertical, horizontal = (dilation * (size - 1) // 2 for size, dilation in pairs)
    return vertical, horizontal


def _conv(c1: int, c2: int, k: Size, s: Size, p: Size, g: int, d: Size) -> nn.Conv2d:
    """Return the convolution without bias.

    Raises:
        BlockError: torch does not accept these arguments.
    """
    try:
        return nn.Conv2d(c1, c2, k, s, p, groups=g, dilation=d, bias=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BlockError(f"a convolution with c1={c1}, c2={c2}, k={k}, s={s}, p={p}, g={g}, d={d}: {error}") from None
