"""The exceptions of yolorep: one base class, and one class for each kind of mistake that a user can correct."""

from __future__ import annotations

import re
from pathlib import PurePath
from traceback import walk_tb

OPENVINO_PLACE = re.compile(r"Exception from \S+:\d+:$")  # lines before the reason


class YolorepError(Exception):
    """Base class of all exceptions that yolorep raises on purpose."""


class FoldError(YolorepError):
    """A module cannot be folded exactly into one convolution.

    path: dotted path of the layer below the module that was passed in; `within` prepends a parent's name.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason, self.path = reason, path
        super().__init__(f"{path}: {reason}" if path else reason)

    def within(self, parent: str) -> FoldError:
        """Return the same error as seen from the parent module that contains this one under the name `parent`."""
        return type(self)(self.reason, f"{parent}.{self.path}" if self.path else parent)


class BlockError(YolorepError):
    """The name, an option or the shape of a block is not accepted."""


class DeclarationError(BlockError):
    """The declaration of a block returns layers that cannot be its branches, wherever the block is used."""


class HostError(YolorepError):
    """A host (ultralytics, a YOLOv5 tree) is missing, or lacks a function that the hooks need."""


class CheckpointError(YolorepError):
    """A checkpoint file cannot be read, or does not contain what the command needs."""


class VerifyError(YolorepError):
    """Two models do not compute the same, or cannot be compared."""


class UsageError(YolorepError):
    """A command got an argument that it does not accept."""


def first_line(error: Exception) -> str:
    r"""Return the first line of an exception's message that says something, or its type if the message is empty.

    Example:
        >>> first_line(RuntimeError("Exception from src/core.cpp:132:\nno such primitive\nRun with ..."))
        'no such primitive'
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return next((line for line in lines if not OPENVINO_PLACE.match(line)), lines[0])


def first_and_more(names: list[str]) -> str:
    """Return the first of some layers' names, and how many more there are.

    Example:
        >>> first_and_more(["model.0", "model.1", "model.3"])
        'model.0 and 2 more layers'
    """
    more = len(names) - 1
    return names[0] + (f" and {more} more layer{'s' if more > 1 else ''}" if more else "")


def line_in(error: BaseException, file: str) -> str:
    """Return where in a file an exception was raised, ' (name, line 7)', the innermost line; empty if elsewhere."""
    lines = [number for frame, number in walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f" ({PurePath(file).name}, line {lines[-1]})" if lines else ""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or torch says that there is not enough memory, on the host or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and any(words in told for words in MEMORY_WORDS)


# Of torch's CPU allocator, and of its allocators for devices.
MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")
