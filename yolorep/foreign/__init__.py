"""Fold re-parameterization blocks of other projects into the form that those projects run deployed.

The blocks are recognized by class name and attributes; no other project is imported. A block is written as a nest of
linear layers (`layers`, `declared_blocks`), folded like any nest, checked on noise, and replaced by its project's form
of a deployed block (`deployed_forms`).
"""

from yolorep.foreign.folding import Folded, Folds, folded, foreign_blocks

__all__ = ["Folded", "Folds", "folded", "foreign_blocks"]
