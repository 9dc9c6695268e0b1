"""The ways to run a model: PyTorch's own, and runtimes of exported files; each becomes one call.

job: what all of them share. table: one row for each. The other modules start one runtime each.
"""
