"""Blocks of other projects that only their own methods fold, each with the names that its project gives them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 8


class ConvNorm(nn.Module):
    """Convolution and batch norm, as `ConvNormLayer` of RT-DETR and `ConvModule` of mmcv."""

    def __init__(self, c1: int, c2: int, k: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c1, c2, k, padding=k // 2, bias=False), nn.BatchNorm2d(c2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def folded(self, k: int) -> tuple[Tensor, Tensor]:
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        margin = (k - weight.shape[-1]) // 2
        return F.pad(weight, [margin] * 4), self.norm.bias - self.norm.running_mean * scale


def merged(*branches: tuple[Tensor, Tensor]) -> nn.Conv2d:
    weight, bias = sum(b[0] for b in branches), sum(b[1] for b in branches)
    out, into, k, _ = weight.shape
    conv = nn.Conv2d(into, out, k, padding=k // 2)
    conv.weight.data, conv.bias.data = weight.detach(), bias.detach()
    return conv


class RepVggBlock(nn.Module):
    """RT-DETR, D-FINE, DEIM: `convert_to_deploy` keeps the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.act = ConvNorm(C, C, 3), ConvNorm(C, C, 1), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) if hasattr(self, "conv") else self.conv1(x) + self.conv2(x))

    def convert_to_deploy(self) -> None:
        self.conv = merged(self.conv1.folded(3), self.conv2.folded(3))


class QARepVGGBlock(nn.Module):
    """super-gradients, YOLO-NAS: `fuse_block_residual_branches`, with an alpha beside the 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.branch_3x3, self.branch_1x1 = ConvNorm(C, C, 3), nn.Conv2d(C, C, 1)
        self.alpha, self.post_bn = nn.Parameter(torch.tensor([0.7])), nn.BatchNorm2d(C)
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.post_bn(self.rbr_reparam(x)).relu()
        return self.post_bn(self.branch_3x3(x) + self.alpha * self.branch_1x1(x)).relu()

    def fuse_block_residual_branches(self) -> None:
        if self.fused:
            return
        one = F.pad(self.branch_1x1.weight * self.alpha, [1] * 4), self.branch_1x1.bias * self.alpha
        self.rbr_reparam, self.fused = merged(self.branch_3x3.folded(3), one), True
        del self.branch_3x3, self.branch_1x1, self.alpha

    def prep_model_for_conversion(self, input_size: object = None, **options: object) -> None:
        self.fuse_block_residual_branches()


class DilatedReparamBlock(nn.Module):
    """UniRepLKNet: `merge_dilated_branches`."""

    def __init__(self) -> None:
        super().__init__()
        self.lk_origin, self.small = ConvNorm(C, C, 5), ConvNorm(C, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lk_origin(x) + self.small(x) if hasattr(self, "small") else self.lk_origin(x)

    def merge_dilated_branches(self) -> None:
        if hasattr(self, "small"):
            self.lk_origin = merged(self.lk_origin.folded(5), self.small.folded(5))
            del self.small


class Residual(nn.Module):
    """RepViT, EfficientViT: `fuse` returns the folded layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(C, C, 3), ConvNorm(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)

    def fuse(self) -> nn.Conv2d:
        return merged(self.a.folded(3), self.b.folded(3))


class Activation(nn.Module):
    """VanillaNet's activation: it folds its batch norm by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bn, self.bias = nn.Parameter(torch.randn(C, 1, 3, 3)), nn.BatchNorm2d(C), None

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x.relu(), self.weight, self.bias, padding=1, groups=C)
        return y if self.bias is not None else self.bn(y)

    def switch_to_deploy(self) -> None:
        if self.bias is not None:
            return
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        self.weight.data = self.weight.data * scale.view(-1, 1, 1, 1)
        self.bias = nn.Parameter(self.bn.bias - self.bn.running_mean * scale)
        del self.bn


class VanillaBlock(nn.Module):
    """VanillaNet's block: its method folds its own layers, and those of its child as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = ConvNorm(C, C, 1), ConvNorm(C, C, 1), Activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) if hasattr(self, "conv") else self.a(x) + self.b(x))

    def switch_to_deploy(self) -> None:
        if hasattr(self, "a"):
            self.conv = merged(self.a.folded(1), self.b.folded(1))
            self.act.switch_to_deploy()
            del self.a, self.b


class Container(nn.Module):
    """A stage whose method only calls those of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = DilatedReparamBlock(), Activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def switch_to_deploy(self) -> None:
        self.first.merge_dilated_branches()
        self.second.switch_to_deploy()


class AlphaRepVGG(nn.Module):
    """mmyolo, PP-YOLOE+: RepVGG's name and attributes, and a learned alpha on the 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([0.7]))
        self.rbr_dense, self.rbr_1x1, self.rbr_identity = ConvNorm(C, C, 3), ConvNorm(C, C, 1), None

    def forward(self, x: Tensor) -> Tensor:
        return self.rbr_reparam(x) if hasattr(self, "rbr_reparam") else self.rbr_dense(x) + self.alpha * self.rbr_1x1(x)

    def switch_to_deploy(self) -> None:
        weight, bias = self.rbr_1x1.folded(3)
        self.rbr_reparam = merged(self.rbr_dense.folded(3), (weight * self.alpha, bias * self.alpha))
        del self.rbr_dense, self.rbr_1x1, self.rbr_identity


AlphaRepVGG.__name__ = "RepVGGBlock"


class Untold(nn.Module):
    """Branches, and a method that only returns the folded kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(C, C, 3), ConvNorm(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        conv = merged(self.a.folded(3), self.b.folded(3))
        return conv.weight, conv.bias


class FusedInPlace(Untold):
    """A block that a project's own `fuse` folds in place."""

    def fuse(self) -> None:
        self.a, self.b = merged(self.a.folded(3), self.b.folded(3)), nn.Identity()  # type: ignore[assignment]
