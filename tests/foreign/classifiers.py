"""Look-alikes, as in `lookalikes`, of the blocks of projects that classify: mmpretrain, RepLKNet, LeViT."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from tests.foreign.lookalikes import _folded


def conv_norm(c1: int, c2: int, k: int, s: int = 1, g: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(c2)))


class RepVGGBlock(nn.Module):
    """mmpretrain's: once it is deployed, its forward has no squeeze-and-excitation."""

    def __init__(self, c1: int, c2: int, s: int = 1, g: int = 1, se: nn.Module | None = None) -> None:
        super().__init__()
        self.deploy, self.se_layer, self.act = False, se, nn.ReLU()
        self.branch_norm = nn.BatchNorm2d(c1) if c1 == c2 and s == 1 else None
        self.branch_3x3, self.branch_1x1 = (conv_norm(c1, c2, k, s, g) for k in (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.act(self.branch_reparam(x))
        y = self.branch_3x3(x) + self.branch_1x1(x) + (0 if self.branch_norm is None else self.branch_norm(x))
        return self.act(y if self.se_layer is None else self.se_layer(y))

    def switch_to_deploy(self) -> None:
        """What it does right is not repeated here, only what it then forgets."""
        self.se_layer = None


class MobileOneBlock(nn.Module):
    """mmpretrain's."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, branches: int = 2) -> None:
        super().__init__()
        self.deploy, self.se, self.act = False, nn.Identity(), nn.ReLU()
        self.branch_norm = nn.BatchNorm2d(c1) if c1 == c2 and s == 1 else None
        self.branch_scale = conv_norm(c1, c2, 1, s, g) if k > 1 else None
        self.branch_conv_list = nn.ModuleList(conv_norm(c1, c2, k, s, g) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.act(self.se(self.branch_reparam(x)))
        extra = [branch(x) for branch in (self.branch_norm, self.branch_scale) if branch is not None]
        return self.act(self.se(sum(branch(x) for branch in self.branch_conv_list) + sum(extra)))


class CudaConv(nn.Conv2d):
    """RepLKNet's faster depthwise convolution: it pads by half its kernel, and its `padding` says 0."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups)


class ReparamLargeKernelConv(nn.Module):
    """RepLKNet's. cuda: with its faster layer."""

    def __init__(self, channels: int, k: int = 7, small: int = 3, cuda: bool = False) -> None:
        super().__init__()
        kind, padding = (CudaConv, 0) if cuda else (nn.Conv2d, k // 2)
        large = kind(channels, channels, k, padding=padding, groups=channels, bias=False)
        self.lkb_origin = nn.Sequential(OrderedDict(conv=large, bn=nn.BatchNorm2d(channels)))
        conv = nn.Conv2d(channels, channels, small, padding=small // 2, groups=channels, bias=False)
        self.small_conv = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "lkb_reparam"):
            return self.lkb_reparam(x)
        return self.lkb_origin(x) + self.small_conv(x)

    @torch.no_grad()
    def merge_kernel(self) -> None:
        (weight, bias), (small, small_bias) = (_folded(*branch) for branch in (self.lkb_origin, self.small_conv))
        large = self.lkb_origin.conv
        width = (large.kernel_size[0] - small.shape[-1]) // 2
        merged = nn.Conv2d(*weight.shape[:1] * 2, large.kernel_size, padding=large.padding, groups=large.groups)
        merged.weight.copy_(weight + nn.functional.pad(small, [width] * 4))
        merged.bias.copy_(bias + small_bias)
        self.lkb_reparam = merged


class Conv2d_BN(nn.Sequential):
    """LeViT's. Its fold made a convolution of the wrong number of input channels."""

    def __init__(self, c1: int, c2: int, k: int = 3, g: int = 1) -> None:
        conv = nn.Conv2d(c1, c2, k, padding=k // 2, groups=g, bias=False)
        super().__init__(OrderedDict(c=conv, bn=nn.BatchNorm2d(c2)))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        weight, bias = _folded(self.c, self.bn)
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=1, groups=self.c.groups)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv
