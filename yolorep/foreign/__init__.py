"""Re-parameterization blocks of other projects, folded by yolorep's algebra into what those projects run deployed.

They are known by class name and attributes; no other project is imported. A block is written as the nest of linear
layers that it is (`layers`, `blocks`), folded like any nest, checked on noise against itself, and given the form that
its own project has for a deployed block (`deployed`).
"""

from yolorep.foreign.folding import Folded, folded, foreign_blocks

__all__ = ["Folded", "folded", "foreign_blocks"]
