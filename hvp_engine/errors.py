"""Exceptions raised by hvp_engine; every message names the cause and the fix.

All are an :class:`HvpEngineError`. Of arguments speak :class:`ConfigurationError` and :class:`BlockError`; of loss and
data :class:`ObjectiveError` with :class:`RowError`, :class:`NonDeterministicError` and :class:`NotFiniteError`; of the
model's derivatives :class:`SecondDerivativeError` with :class:`BackwardError`; of the machine
:class:`OutOfMemoryError`, :class:`DeviceError` and :class:`BackendError`; of files
:class:`RunFolderError` with :class:`ForeignRunError`; of one process among several :class:`ProcessError`.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackwardError",
    "BlockError",
    "ConfigurationError",
    "DeviceError",
    "ForeignRunError",
    "HvpEngineError",
    "NonDeterministicError",
    "NotFiniteError",
    "ObjectiveError",
    "OutOfMemoryError",
    "ProcessError",
    "RowError",
    "RunFolderError",
    "SecondDerivativeError",
]


def printable(text: str, keep: str = "") -> str:
    r"""Write text of anybody's so that it does nothing but show: what cannot be seen becomes its Python escape.

    Control characters (escape sequences of terminals begin with one), line breaks, and characters that turn the
    direction of the text or take no room: ``\x1b[31m``, ``\n``, ``\u202e``. Everything else stays as it is. The
    function stands here, below all rooms, because the messages of errors go through it too.

    Args:
        text: Any text.
        keep: Characters to leave alone, for instance line breaks.
    """
    if text.isprintable():
        return text
    escaped = (c if c in keep or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


class HvpEngineError(Exception):
    """Base class of all errors raised by hvp_engine."""

    def __str__(self) -> str:
        """Return the message; what it quotes from files and names sends nothing to the terminal."""
        return printable(super().__str__(), keep="\n")


class ConfigurationError(HvpEngineError, ValueError):
    """An argument is out of range, of the wrong kind, or contradicts another one."""


class ObjectiveError(HvpEngineError):
    """The loss or its data cannot define an objective: not scalar, not finite, empty, malformed."""


class RowError(ObjectiveError):
    """The loss is no sum of rows that can be told apart, as Fisher matrices need it."""


class NonDeterministicError(ObjectiveError):
    """The same parameters gave two different losses, or the data changed between sweeps."""


class NotFiniteError(ObjectiveError):
    """The loss, or a product with its Hessian, is infinite or not a number."""


class BlockError(HvpEngineError, ValueError):
    """A block specification names unknown, frozen, empty or overlapping parameters."""


class SecondDerivativeError(HvpEngineError):
    """The model cannot be differentiated twice, or its second derivative is wrong."""


class BackwardError(SecondDerivativeError):
    """A backward pass of the model raised an exception that tells nothing of second derivatives."""


class OutOfMemoryError(HvpEngineError, MemoryError):
    """The smallest possible unit of work does not fit into the memory budget."""


class DeviceError(HvpEngineError):
    """A GPU failed: an illegal access, an assertion in a kernel, a launch that was refused."""


class RunFolderError(HvpEngineError):
    """A run folder or checkpoint is missing, damaged, foreign, or cannot be written."""


class ForeignRunError(RunFolderError):
    """A run folder holds another job than the one that was asked for."""


class ProcessError(HvpEngineError):
    """Another process of a job that runs in several has ended or failed, or cannot be reached.

    Attributes:
        rank: Which one, where that is known.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        """Take the message, and which process it is about."""
        super().__init__(message, rank)
        self.rank = rank

    def __str__(self) -> str:
        """Return the message."""
        return printable(str(self.args[0]), keep="\n")


class BackendError(HvpEngineError):
    """A requested kernel backend does not exist or cannot run on this device, or one of its kernels cannot."""


def not_finite(product: str, when: str = "") -> str:
    """Put into words that a product is not finite, and what to do.

    Args:
        product: What it is a product with, in words that follow "product".
        when: At which step it was formed, in words that follow "not finite".
    """
    return (
        f"The Hessian-vector product {product} is not finite{when}: an operation's second derivative is infinite or "
        "not a number there (sqrt or norm at zero, log of zero), or the arithmetic overflows; add a small epsilon to "
        "the operation, or try precision='fp64'."
    )


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
