"""The error family: one base class, and one class for each thing a user can act on."""

from __future__ import annotations


class YolorepError(Exception):
    """Base of every error that yolorep raises on purpose."""


class FoldError(YolorepError):
    """A module cannot be folded exactly into one convolution.

    `path` is the module's dotted path below the object that was given to the caller; each level that the error
    passes through prepends its own name with `within`.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason, self.path = reason, path
        super().__init__(f"{path}: {reason}" if path else reason)

    def within(self, parent: str) -> FoldError:
        """The same error as seen from the parent module that holds this one under the name `parent`."""
        return type(self)(self.reason, f"{parent}.{self.path}" if self.path else parent)


class BlockError(YolorepError):
    """A block's name, option or shape is not one that yolorep knows."""


class HostError(YolorepError):
    """A host (ultralytics, a YOLOv5 tree) is absent, or does not have the shape that the hooks need."""


class CheckpointError(YolorepError):
    """A checkpoint file cannot be read, or does not hold what the command needs."""


class VerifyError(YolorepError):
    """Two models that should compute the same do not, or cannot be compared."""


class UsageError(YolorepError):
    """A command was asked for something that it does not have or cannot do."""


def first_line(error: Exception) -> str:
    """What someone else's error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or torch says that there is not enough memory, on the host or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and any(words in told for words in MEMORY_WORDS)


# Of torch's CPU allocator, and of its allocators for devices.
MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")
