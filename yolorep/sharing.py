"""The shares of branches in a whole model: the start `split`, and the frozen paths of `twin` after training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.shares import Split
from yolorep.errors import BlockError, first_line
from yolorep.modes import evaluating

HOW = "yolorep expand IN OUT --start split --data DATA.yaml, or expand(model, start='split', images=batches)"


def share_(model: nn.Module, layers: Iterable[tuple[str, Any]], images: Iterable[Tensor] | None) -> None:
    """Divide the kernels of blocks whose branches add nothing yet among their paths, in place.

    model: is called with each of the images in training mode. layers: its blocks, by name; others are passed over.
    images: batches as the model takes them; None if no statistics are to be measured.

    Branches that take no share stay silent, which is said in a warning.

    Raises:
        BlockError: statistics are needed and there are no images, or no branch takes a share.
    """
    splits = {name: _split(name, layer) for name, layer in layers if isinstance(layer, Conv_C3)}
    splits = {name: split for name, split in splits.items() if split.paths or split.left}
    if not any(split.paths for split in splits.values()):
        kinds = ", ".join(sorted({split.block.block for split in splits.values()})) or "the block"
        raise BlockError(
            f"start split: no branch of {kinds} takes a part of a kernel; accepted: blocks with branches of one "
            "convolution and one batch norm or scale, such as repvgg, acb and mobileone"
        )
    if images is not None:
        _measure(model, splits, images)
    elif any(split.measures for split in splits.values()):
        raise BlockError(f"start split measures statistics on images; accepted: {HOW}")
    for split in splits.values():
        split.apply_()
    silent = sorted({name for split in splits.values() for name in split.left})
    if silent:
        warnings.warn(f"start split: {', '.join(silent)} cannot take a part of a kernel and start silent", stacklevel=3)


def check_share(share: float) -> None:
    """Check the share of a frozen path.

    Raises:
        BlockError: it is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise BlockError(f"share {share:g} is not accepted; accepted: from 0, the trained path, to 1, the frozen one")


@torch.no_grad()
def weigh_twins_(model: nn.Module, share: float) -> int:
    """Give the frozen path of each block `twin` a share of the gains of its two paths, in place.

    Only the gains (gamma) of the batch norms are scaled: that of the frozen path by 2 * share, that of the trained path
    by 2 * (1 - share). Their biases (beta) stay as they are, at every share. At 0.5 the model stays as it was trained;
    at 0 and 1 the kernel of one path is left, with twice its gain. In eval mode the kernel and the bias of the folded
    convolution are linear in the share. Returns the number of blocks.

    Raises:
        BlockError: the share is not from 0 to 1, there is no such block, or none has been trained: the statistics of
            their frozen paths are then those of the start, which hold for both paths together alone.

    Example:
        >>> block = Conv_C3(4, 4, block="twin").eval()
        >>> _ = block.branch_frozen.bn.running_mean.fill_(0.1)
        >>> weigh_twins_(block, 0.25), block.bn.weight[0].item(), block.branch_frozen.bn.weight[0].item()
        (1, 1.5, 0.5)
    """
    check_share(share)
    twins: list[Any] = [m for m in model.modules() if isinstance(m, Conv_C3) and hasattr(m, "branch_frozen")]
    if not twins:
        raise BlockError("share is of the frozen paths of block twin, of which the model has none; accepted: rep=twin")
    if not any(bool(twin.branch_frozen.bn.running_mean.any()) for twin in twins):
        raise BlockError("share: the blocks twin have not been trained since they were made; accepted: a trained model")
    for twin in twins:
        twin.bn.weight.mul_(2 * (1 - share))
        twin.branch_frozen.bn.weight.mul_(2 * share)
    return len(twins)


def _split(name: str, block: Conv_C3) -> Split:
    try:
        return Split.of(block)
    except BlockError as error:
        raise BlockError(f"{name}: {error}") from None


@torch.no_grad()
def _measure(model: nn.Module, splits: Mapping[str, Split], images: Iterable[Tensor]) -> None:
    """Run the model in training mode, where every layer sees what it will see; its statistics stay as they are."""
    like = next(model.parameters())
    channels = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d)).in_channels
    with evaluating(model), _statistics_kept(model), _observing(splits.values()):
        model.train()
        for batch in images:
            if not isinstance(batch, Tensor) or batch.dim() != 4:
                raise BlockError("start split: images are batches, tensors of (batch, channels, height, width)")
            if batch.shape[1] != channels:
                raise BlockError(f"start split: images have {batch.shape[1]} channels, the model takes {channels}")
            _run(model, batch.to(like))
    unseen = [name for name, split in splits.items() if not split.statistics]
    if unseen:
        raise BlockError(f"start split: no image reached {unseen[0]}; accepted: at least one batch of images")


def _run(model: nn.Module, batch: Tensor) -> None:
    try:
        model(batch)
    except (RuntimeError, ValueError) as error:  # from torch, for sizes that are too small or no multiple of the stride
        raise BlockError(f"start split: the model cannot be run on {tuple(batch.shape)}: {first_line(error)}") from None


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


@contextmanager
def _observing(splits: Iterable[Split]) -> Iterator[None]:
    def observe(split: Split) -> None:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            split.observe(inputs[0])

        handles.append(split.block.register_forward_pre_hook(see))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for split in splits:
            observe(split)
        yield
    finally:
        for handle in handles:
            handle.remove()
