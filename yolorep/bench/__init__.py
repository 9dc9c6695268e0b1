"""`yolorep bench`: how fast a model or a block is with its branches, deployed, and against the stock one."""

from yolorep.bench.measure import Result, Settings, bench
from yolorep.bench.subjects import of_block, of_model, of_name
from yolorep.bench.timing import Spread, Timing, interleave

__all__ = ["Result", "Settings", "Spread", "Timing", "bench", "interleave", "of_block", "of_model", "of_name"]
