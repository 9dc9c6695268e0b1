"""Blocks: a dense convolution and the linear branches declared beside it, one file per paper."""

from yolorep.blocks import repvgg as _repvgg  # noqa: F401  registers its declarations
from yolorep.blocks.c3 import C3, Bottleneck
from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.linear import MAPS, BNPad2d, ChannelMap, Sum
from yolorep.blocks.registry import BLOCKS, IDENTITIES, Site, register_block

__all__ = [
    "BLOCKS",
    "C3",
    "IDENTITIES",
    "MAPS",
    "BNPad2d",
    "Bottleneck",
    "ChannelMap",
    "Conv_C3",
    "Site",
    "Sum",
    "register_block",
]
