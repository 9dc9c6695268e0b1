"""Blocks: a dense convolution and the linear branches declared beside it, one file per paper."""

from yolorep import plugins
from yolorep.blocks import (  # noqa: F401  register their blocks
    acb,
    csla,
    dbb,
    mobileone,
    orepa,
    qarepvgg,
    refconv,
    replk,
    repvgg,
    twin,
)
from yolorep.blocks.c3 import C3, Bottleneck
from yolorep.blocks.conv_c3 import Conv_C3
from yolorep.blocks.linear import MAPS, BNPad2d, ChannelMap, Filter, FixedScale, Scale, Sum
from yolorep.blocks.registry import BLOCKS, IDENTITIES, Block, block_of, register_block
from yolorep.blocks.site import Site
from yolorep.training.decay import decay_equivalent_kernels_
from yolorep.training.penalty import equivalent_l2

__all__ = [
    "BLOCKS",
    "C3",
    "IDENTITIES",
    "MAPS",
    "BNPad2d",
    "Block",
    "Bottleneck",
    "ChannelMap",
    "Conv_C3",
    "Filter",
    "FixedScale",
    "Scale",
    "Site",
    "Sum",
    "block_of",
    "decay_equivalent_kernels_",
    "equivalent_l2",
    "register_block",
]

plugins.load_all()  # they import from here: last
