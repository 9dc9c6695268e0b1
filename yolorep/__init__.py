"""Structural re-parameterization for YOLO: train with many branches, ship a plain YOLO."""

from yolorep._version import __version__
from yolorep.blocks import C3, Bottleneck, Conv_C3
from yolorep.deployment import deploy
from yolorep.errors import BlockError, CheckpointError, FoldError, HostError, VerifyError, YolorepError
from yolorep.expansion import expand
from yolorep.folding import fold
from yolorep.hosts import install as _install
from yolorep.verification import Report, verify

__all__ = [
    "C3",
    "BlockError",
    "Bottleneck",
    "CheckpointError",
    "Conv_C3",
    "FoldError",
    "HostError",
    "Report",
    "VerifyError",
    "YolorepError",
    "__version__",
    "deploy",
    "expand",
    "fold",
    "verify",
]

_install()
