"""Declarations of the blocks of other projects: their linear branches, and their deployed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolorep.algebra import Kernel
from yolorep.blocks.linear import Sum
from yolorep.errors import FoldError
from yolorep.folding import kernel_of
from yolorep.foreign.deployed_forms import Alone, Form, Slot, Stock
from yolorep.foreign.layers import convolution, gains, geometry, sequence, written

INPUT = "<input>"  # as a branch: the block's input itself
BATCH = 2


@dataclass(frozen=True)
class ForeignBlock:
    """A block of another project.

    names: its class names. needs: attributes that only an undeployed block has. linear: returns everything before the
    layers that stay, as layers that the fold knows. form: its deployed form.
    """

    names: tuple[str, ...]
    needs: tuple[str, ...]
    linear: Callable[[Any], nn.Module]
    form: Form

    def matches(self, module: nn.Module) -> bool:
        return type(module).__name__ in self.names and all(_has(module, name) for name in self.needs)

    def deployed(self, module: nn.Module) -> bool:
        """Return whether a module is this block in its deployed form."""
        slot = self.form.name if isinstance(self.form, Slot) else ""
        return type(module).__name__ in self.names and _has(module, slot)

    def folds(self, block: nn.Module) -> list[Kernel]:
        """Return the block as one kernel. Raises FoldError if it does not fold."""
        try:
            return [kernel_of(self.linear(block))]
        except AttributeError as error:
            raise FoldError(f"it is not the block known by that name: {error}") from None

    def inputs(self, block: nn.Module, kernels: list[Kernel]) -> Iterator[Tensor]:
        """Yield noise of two adjacent sizes a little over the kernel's reach, square as some attention needs it."""
        (kernel,) = kernels
        random = torch.Generator().manual_seed(0)
        reach = max(d * (k - 1) for d, k in zip(kernel.dilation, kernel.size, strict=True))
        for side in (reach + 3, reach + 4):
            yield torch.randn(BATCH, kernel.in_channels, side, side, generator=random, dtype=torch.float64)

    def run(self, block: nn.Module, x: Tensor) -> Any:
        return block(x)

    def prepare(self, block: nn.Module, kernels: list[Kernel]) -> Any:
        return self.form.prepare(block, kernels[0])

    def commit_(self, block: nn.Module, prepared: Any) -> None:
        self.form.commit_(block, prepared)

    @property
    def gone(self) -> tuple[str, ...]:
        return self.form.gone


def _has(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, (nn.Module, nn.Parameter))


def sum_of(*branches: str, then: tuple[str, ...] = ()) -> Callable[[Any], nn.Module]:
    """Return a function that writes a block as the sum of its named branches, followed by the layers `then`.

    Branches that the block lacks or has as None are left out; each member of a ModuleList is a branch.
    """

    def linear(block: Any) -> nn.Module:
        layers = dict(_branches(block, branches))
        after = {name: getattr(block, name) for name in then if _has(block, name)}
        return sequence({"sum": Sum(written(layers)), **after})

    return linear


def _branches(block: Any, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    for name in names:
        branch = nn.Identity() if name == INPUT else getattr(block, name, None)
        if isinstance(branch, nn.ModuleList):
            yield from ((f"{name}_{index}", member) for index, member in enumerate(branch))
        elif branch is not None:
            yield name, branch


def _asymmetric(block: Any) -> nn.Module:
    """ACNet: 1xk and kx1 read a cropped input if the padding is too small for them."""
    width = getattr(block, "crop", 0)
    cropped = {"ver": nn.ZeroPad2d((-width, -width, 0, 0)), "hor": nn.ZeroPad2d((0, 0, -width, -width))}
    branches = {"square": sequence({"conv": block.square_conv, "bn": block.square_bn})}
    for name, crop in cropped.items():
        conv, bn = getattr(block, f"{name}_conv"), getattr(block, f"{name}_bn")
        branches[name] = sequence({"crop": crop, "conv": conv, "bn": bn})
    return sequence({"sum": Sum(branches)})


def _generated(block: Any) -> nn.Module:
    return sequence({"conv": convolution(block.weight_gen(), **geometry(block)), "bn": block.bn})


def _mixer(block: Any) -> nn.Module:
    """FastViT's token mixer, x + scale * (mixer(x) - norm(x)), arXiv 2303.14189."""
    minus = gains(-torch.ones(block.dim, dtype=torch.float64))
    difference = Sum({"mixer": TIMM_SUM(block.mixer), "norm": sequence({"sum": TIMM_SUM(block.norm), "minus": minus})})
    scaled = sequence({"difference": difference, "scale": block.layer_scale})
    return sequence({"sum": Sum({"input": nn.Identity(), "scaled": scaled})})


TIMM_SUM = sum_of("conv_kxk", "conv_1x1", "conv_scale", "identity")
REPVGG = ("rbr_dense", "rbr_1x1", "rbr_identity")
DBB = ("dbb_origin", "dbb_1x1", "dbb_avg", "dbb_1x1_kxk")
MOBILEONE = ("rbr_conv", "rbr_scale", "rbr_skip")
ACB = tuple(f"{axis}_{layer}" for axis in ("square", "ver", "hor") for layer in ("conv", "bn"))
TIMM = ("conv_kxk", "conv_1x1", "conv_scale", "identity", "drop_path")
MMPRETRAIN = ("branch_3x3", "branch_conv_list", "branch_1x1", "branch_scale", "branch_norm")
DEPLOYED, INFERENCE = {"deploy": True}, {"inference_mode": True}
OREPA = tuple(
    f"weight_orepa_{name}"
    for name in ("origin", "1x1", "1x1_kxk_idconv1", "1x1_kxk_conv1", "1x1_kxk_conv2", "avg_avg", "avg_conv",
                 "pfir_conv", "prior", "gconv_dw", "gconv_pw")
)  # fmt: skip
OREPA_1X1 = ("weight_or1x1_origin", "weight_or1x1_l2i_conv1", "weight_or1x1_l2i_conv2")
LARGE = tuple(f"weight{index}" for index in range(32))

BLOCKS = (
    ForeignBlock(  # RepVGG, arXiv 2101.03697, as in its repository, YOLOv6, YOLOv7 and OREPA
        ("RepVGGBlock", "RepVGGplusBlock", "RepConv", "RepConv_OREPA", "RepVGGBlock_OREPA"),
        ("rbr_dense", "rbr_1x1"),
        sum_of(*REPVGG),
        Slot("rbr_reparam", (*REPVGG, "id_tensor"), DEPLOYED),
    ),
    ForeignBlock(  # YOLOv6, arXiv 2212.01593: the batch norm comes after the sum
        ("QARepVGGBlock", "QARepVGGBlockV2"),
        ("rbr_dense", "rbr_1x1", "bn"),
        sum_of(*REPVGG, "rbr_avg", then=("se", "bn")),
        Slot("rbr_reparam", (*REPVGG, "rbr_avg", "id_tensor"), DEPLOYED, emptied=("bn",)),
    ),
    ForeignBlock(  # ultralytics, YOLOv9
        ("RepConv", "RepConvN"),
        ("conv1", "conv2"),
        sum_of("conv1", "conv2", "bn"),
        Stock("conv1", ("conv1", "conv2", "bn", "id_tensor", "g", "c1", "c2")),
    ),
    ForeignBlock(  # YOLOv10, also in ultralytics
        ("RepVGGDW",),
        ("conv", "conv1", "act"),
        sum_of("conv", "conv1"),
        Stock("conv", ("conv", "conv1", "dim")),
    ),
    ForeignBlock(  # RepViT, arXiv 2307.09283, and timm's copy
        ("RepVGGDW", "RepVggDw"),
        ("conv", "conv1", "bn"),
        sum_of("conv", "conv1", INPUT, then=("bn",)),
        Alone(("conv", "conv1", "bn", "dim", "legacy")),
    ),
    ForeignBlock(  # MobileOne, arXiv 2206.04040
        ("MobileOneBlock",),
        ("rbr_conv",),
        sum_of(*MOBILEONE),
        Slot("reparam_conv", (*MOBILEONE, "id_tensor"), INFERENCE),
    ),
    ForeignBlock(("RepVggBlock",), ("conv_kxk", "conv_1x1"), TIMM_SUM, Slot("reparam_conv", (*TIMM, "id_tensor"))),
    ForeignBlock(("MobileOneBlock",), ("conv_kxk",), TIMM_SUM, Slot("reparam_conv", (*TIMM, "id_tensor"), INFERENCE)),
    ForeignBlock(
        ("RepMixer",), ("mixer", "norm"), _mixer, Slot("reparam_conv", ("mixer", "norm", "layer_scale"), INFERENCE)
    ),
    ForeignBlock(
        ("RepConditionalPosEnc",), ("pos_enc",), sum_of("pos_enc", INPUT), Slot("reparam_conv", ("pos_enc",), INFERENCE)
    ),
    ForeignBlock(  # RepLKNet, arXiv 2203.06717, as in timm
        ("ReparamLargeKernelConv",),
        ("large_conv",),
        sum_of("large_conv", "small_conv"),
        Slot("reparam_conv", ("large_conv", "small_conv")),
    ),
    ForeignBlock(  # its repository
        ("ReparamLargeKernelConv",),
        ("lkb_origin",),
        sum_of("lkb_origin", "small_conv"),
        Slot("lkb_reparam", ("lkb_origin", "small_conv")),
    ),
    ForeignBlock(  # RepVGG in mmpretrain, whose deployed forward passes by squeeze-and-excitation
        ("RepVGGBlock",),
        ("branch_3x3", "branch_1x1"),
        sum_of(*MMPRETRAIN),
        Slot("branch_reparam", MMPRETRAIN, DEPLOYED, before_act=("se_layer",)),
    ),
    ForeignBlock(  # MobileOne in mmpretrain
        ("MobileOneBlock",), ("branch_conv_list",), sum_of(*MMPRETRAIN), Slot("branch_reparam", MMPRETRAIN, DEPLOYED)
    ),
    ForeignBlock(  # Diverse Branch Block, arXiv 2103.13425
        ("DiverseBranchBlock", "DBB"), ("dbb_origin", "dbb_avg"), sum_of(*DBB), Slot("dbb_reparam", DBB, DEPLOYED)
    ),
    ForeignBlock(  # ACNet, arXiv 1908.03930
        ("ACBlock",), ACB, _asymmetric, Slot("fused_conv", ACB, DEPLOYED)
    ),
    ForeignBlock(  # OREPA, arXiv 2204.00826
        ("OREPA",),
        ("weight_orepa_origin", "bn"),
        _generated,
        Slot("orepa_reparam", (*OREPA, "id_tensor", "vector", "bn"), DEPLOYED),
    ),
    ForeignBlock(
        ("OREPA_1x1",),
        ("weight_or1x1_origin", "bn"),
        _generated,
        Slot("or1x1_reparam", (*OREPA_1X1, "vector", "bn"), DEPLOYED),
    ),
    ForeignBlock(
        ("OREPA_LargeConv", "OREPA_LargeConvBase"),
        ("weight0", "bn"),
        _generated,
        Slot("or_large_reparam", (*LARGE, "bn"), DEPLOYED),
    ),
)
