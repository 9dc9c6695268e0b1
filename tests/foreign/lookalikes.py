"""Blocks with the class names, attributes and forward of other projects' blocks, for those that cannot be installed.

Written from what each project's block has and does. Where a project's own fold is known to be wrong, that fold is here
too, so that a test can show both.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(c1: int, c2: int, k: int, s: int = 1, g: int = 1, bias: bool = False, **options) -> nn.Sequential:
    conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=bias, **options)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c2)))


class RepVGGBlock(nn.Module):
    """The official block; YOLOv6, YOLOv7 and OREPA have the same attributes."""

    def __init__(self, c1: int, c2: int, s: int = 1, g: int = 1, se: nn.Module | None = None, **options) -> None:
        super().__init__()
        self.deploy = False
        self.se, self.nonlinearity = se or nn.Identity(), nn.ReLU()
        self.rbr_identity = nn.BatchNorm2d(c1) if c1 == c2 and s == 1 else None
        self.rbr_dense = conv_bn(c1, c2, 3, s, g, **options)
        self.rbr_1x1 = conv_bn(c1, c2, 1, s, g)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.se(self.rbr_reparam(x)))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + identity))

    def switch_to_deploy(self) -> None:
        """As the project does it: no bias, no padding mode, a float32 identity, BatchNorm2d only."""
        weight, bias = _folded(*self.rbr_dense)
        weight_1x1, bias_1x1 = _folded(*self.rbr_1x1)
        weight, bias = weight + F.pad(weight_1x1, [1] * 4), bias + bias_1x1
        dense = self.rbr_dense.conv
        if self.rbr_identity is not None:
            assert isinstance(self.rbr_identity, nn.BatchNorm2d)
            one = torch.zeros(dense.weight.shape)
            one[range(len(one)), [i % one.shape[1] for i in range(len(one))], 1, 1] = 1
            scale = self.rbr_identity.weight / (self.rbr_identity.running_var + self.rbr_identity.eps).sqrt()
            weight = weight + one * scale[:, None, None, None]
            bias = bias + self.rbr_identity.bias - self.rbr_identity.running_mean * scale
        self.rbr_reparam = nn.Conv2d(dense.in_channels, dense.out_channels, 3, dense.stride, 1, groups=dense.groups)
        self.rbr_reparam.weight.data, self.rbr_reparam.bias.data = weight.detach(), bias.detach()


class RepConv(RepVGGBlock):
    """YOLOv7's block, with its own fold: the identity as ones on the diagonal of a (channels, channels // g) matrix."""

    def fuse_repvgg_block(self) -> None:
        weight, bias = _folded(*self.rbr_dense)
        weight_1x1, bias_1x1 = _folded(*self.rbr_1x1)
        one = torch.zeros(self.rbr_1x1.conv.weight.shape).squeeze().fill_diagonal_(1.0)[:, :, None, None]
        scale = self.rbr_identity.weight / (self.rbr_identity.running_var + self.rbr_identity.eps).sqrt()
        bias = bias + bias_1x1 + self.rbr_identity.bias - self.rbr_identity.running_mean * scale
        weight = weight + F.pad(weight_1x1 + one * scale[:, None, None, None], [1] * 4)
        self.rbr_reparam = nn.Conv2d(weight.shape[0], weight.shape[0], 3, 1, 1, groups=self.rbr_dense.conv.groups)
        self.rbr_reparam.weight.data, self.rbr_reparam.bias.data = weight.detach(), bias.detach()


class QARepVGGBlockV2(nn.Module):
    """YOLOv6: the batch norm comes after the sum."""

    def __init__(self, c1: int, c2: int, s: int = 1, g: int = 1) -> None:
        super().__init__()
        same = c1 == c2 and s == 1
        self.se, self.nonlinearity, self.bn = nn.Identity(), nn.ReLU(), nn.BatchNorm2d(c2)
        self.rbr_dense = conv_bn(c1, c2, 3, s, g)
        self.rbr_1x1 = nn.Conv2d(c1, c2, 1, s, groups=g, bias=False)
        self.rbr_identity = nn.Identity() if same else None
        self.rbr_avg = nn.AvgPool2d(3, s, 1) if same else None

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.bn(self.se(self.rbr_reparam(x))))
        extra = [branch(x) for branch in (self.rbr_identity, self.rbr_avg) if branch is not None]
        return self.nonlinearity(self.bn(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + sum(extra))))


class Conv(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(self, c1: int, c2: int, k: int, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class RepConvN(nn.Module):
    """YOLOv9."""

    def __init__(self, c1: int, c2: int, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.g, self.c1, self.c2, self.bn, self.act = g, c1, c2, None, nn.SiLU()
        self.conv1, self.conv2 = (Conv(c1, c2, k, s, g, act=False) for k in (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class RepVGGDW(nn.Module):
    """RepViT; its project's fold pads the 1x1 by one whatever the kernel."""

    def __init__(self, channels: int, k: int = 3) -> None:
        super().__init__()
        self.conv = conv_bn(channels, channels, k, g=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.dim, self.bn = channels, nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)


class MobileOneBlock(nn.Module):
    """The official block."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, branches: int = 3) -> None:
        super().__init__()
        self.inference_mode, self.se, self.activation = False, nn.Identity(), nn.ReLU()
        self.rbr_skip = nn.BatchNorm2d(c1) if c1 == c2 and s == 1 else None
        self.rbr_conv = nn.ModuleList(conv_bn(c1, c2, k, s, g) for _ in range(branches))
        self.rbr_scale = conv_bn(c1, c2, 1, s, g) if k > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.inference_mode:
            return self.activation(self.se(self.reparam_conv(x)))
        extra = [branch(x) for branch in (self.rbr_skip, self.rbr_scale) if branch is not None]
        return self.activation(self.se(sum(branch(x) for branch in self.rbr_conv) + sum(extra)))


class IdentityBasedConv1x1(nn.Conv2d):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        self.id_tensor = torch.zeros_like(self.weight).detach()
        columns = [i % self.id_tensor.shape[1] for i in range(channels)]
        self.id_tensor[range(channels), columns] = 1

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.id_tensor, groups=self.groups)


class BNAndPadLayer(nn.Module):
    def __init__(self, pad_pixels: int, channels: int) -> None:
        super().__init__()
        self.bn, self.pad_pixels = nn.BatchNorm2d(channels), pad_pixels

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        border = (bn.bias - bn.running_mean * bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None]
        return F.pad(bn(x) - border, [self.pad_pixels] * 4) + border


class DiverseBranchBlock(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, pads_bias: bool = True) -> None:
        super().__init__()
        inside = 0 if pads_bias else k // 2  # the trap: zero padding after a batch norm
        self.nonlinear = nn.ReLU()
        self.dbb_origin, self.dbb_1x1 = conv_bn(c1, c2, k, s, g), conv_bn(c1, c2, 1, s, g)
        conv = nn.Conv2d(c1, c2, 1, groups=g, bias=False)
        average = nn.AvgPool2d(k, s)
        self.dbb_avg = nn.Sequential(
            OrderedDict(conv=conv, bn=BNAndPadLayer(k // 2, c2), avg=average, avgbn=nn.BatchNorm2d(c2))
        )
        first = BNAndPadLayer(k // 2, c1) if pads_bias else nn.BatchNorm2d(c1)
        second = nn.Conv2d(c1, c2, k, s, inside, groups=g, bias=False)
        one = IdentityBasedConv1x1(c1, g)
        self.dbb_1x1_kxk = nn.Sequential(OrderedDict(idconv1=one, bn1=first, conv2=second, bn2=nn.BatchNorm2d(c2)))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "dbb_reparam"):
            return self.nonlinear(self.dbb_reparam(x))
        return self.nonlinear(self.dbb_origin(x) + self.dbb_1x1(x) + self.dbb_avg(x) + self.dbb_1x1_kxk(x))


class ACBlock(nn.Module):
    """ACNet: a padding below k // 2 crops the input of the two asymmetric convolutions."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.deploy, self.crop = False, max(k // 2 - padding, 0)
        less = max(padding - k // 2, 0)
        shapes = {"square": (k, k, padding, padding), "ver": (k, 1, padding, less), "hor": (1, k, less, padding)}
        for name, (rows, cols, top, left) in shapes.items():
            conv = nn.Conv2d(c1, c2, (rows, cols), s, (top, left), groups=g, bias=False)
            self.add_module(f"{name}_conv", conv)
            self.add_module(f"{name}_bn", nn.BatchNorm2d(c2))

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.fused_conv(x)
        inside = slice(self.crop, -self.crop or None)
        ver, hor = self.ver_conv(x[..., inside]), self.hor_conv(x[:, :, inside])
        return self.square_bn(self.square_conv(x)) + self.ver_bn(ver) + self.hor_bn(hor)


class OREPA(nn.Module):
    """One convolution whose weight is made of several parameters."""

    def __init__(self, c1: int, c2: int, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = s, 1, 1, g
        self.weight_orepa_origin = nn.Parameter(torch.randn(c2, c1 // g, 3, 3))
        self.weight_orepa_1x1 = nn.Parameter(torch.randn(c2, c1 // g, 1, 1))
        self.vector = nn.Parameter(torch.rand(2, c2))
        self.bn, self.nonlinear = nn.BatchNorm2d(c2), nn.ReLU()

    def weight_gen(self) -> Tensor:
        origin, point = self.weight_orepa_origin, F.pad(self.weight_orepa_1x1, [1] * 4)
        return origin * self.vector[0, :, None, None, None] + point * self.vector[1, :, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "orepa_reparam"):
            return self.nonlinear(self.orepa_reparam(x))
        return self.nonlinear(self.bn(F.conv2d(x, self.weight_gen(), None, self.stride, 1, 1, self.groups)))


class ImplicitA(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit + x


class ImplicitM(ImplicitA):
    def forward(self, x: Tensor) -> Tensor:
        return self.implicit * x


class IDetect(nn.Module):
    """YOLOv7's head up to the boxes."""

    def __init__(self, channels: tuple[int, ...] = (8, 16), outputs: int = 21) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in channels)
        self.ia = nn.ModuleList(ImplicitA(c) for c in channels)
        self.im = nn.ModuleList(ImplicitM(outputs) for _ in channels)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        for i, (a, conv, b) in enumerate(zip(self.ia, self.m, self.im, strict=True)):
            x[i] = b(conv(a(x[i])))
        return x

    def fuseforward(self, x: list[Tensor]) -> list[Tensor]:
        for i, conv in enumerate(self.m):
            x[i] = conv(x[i])
        return x

    @torch.no_grad()
    def fuse(self) -> None:
        for a, conv, b in zip(self.ia, self.m, self.im, strict=True):
            conv.bias += conv.weight[:, :, 0, 0] @ a.implicit.flatten()
            conv.bias *= b.implicit.flatten()
            conv.weight *= b.implicit.transpose(0, 1)


class IAuxDetect(IDetect):
    """The same with auxiliary outputs, for the loss alone, made from inputs of other numbers of channels."""

    def __init__(self, channels: tuple[int, ...] = (8, 16), outputs: int = 21) -> None:
        super().__init__(channels, outputs)
        self.m2 = nn.ModuleList(nn.Conv2d(c + 4, outputs, 1) for c in channels)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        auxiliary = [conv(y) for conv, y in zip(self.m2, x[len(self.m) :], strict=True)]
        return super().forward(x[: len(self.m)]) + auxiliary


def _folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """As every one of these projects writes it: the convolution's own bias is not looked at."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return conv.weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale
