"""Arguments that the engine and the planner share, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import torch

from hvp_engine.errors import ConfigurationError

# Storage of Lanczos vectors, by the names that callers use.
BASIS_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# The error of an average falls with the root of their number; more than this is a slip, and lists of streams would take
# minutes and gigabytes before it shows.
_MOST_PROBES = 100_000


@dataclass(frozen=True)
class LanczosSettings:
    """How to run the recurrence.

    Attributes:
        steps: Largest number of steps.
        reorthogonalize: ``"full"`` against the whole basis, or ``"none"`` (the last two vectors only).
        basis_dtype: Dtype of the stored basis under ``"full"``.
    """

    steps: int
    reorthogonalize: Literal["full", "none"]
    basis_dtype: torch.dtype

    @property
    def store_dtype(self) -> torch.dtype | None:
        """Dtype of the stored basis; None where there is none."""
        return self.basis_dtype if self.reorthogonalize == "full" else None


def whole(name: str, value: Any, least: int | None = None) -> int:
    """An argument as an int; whole numbers of numpy and torch will do.

    Raises:
        ConfigurationError: It is no whole number, or less than ``least``.
    """
    try:
        number = index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigurationError(f"{name}={value!r} must be a whole number{bound}.")
    return int(number)


def check_arguments(steps: int, probes: int, reorthogonalize: str, basis: str) -> None:
    """Refuse what no run of Lanczos can take.

    Raises:
        ConfigurationError: An argument is none of its values.
    """
    whole("steps", steps, 1)
    if whole("probes", probes, 1) > _MOST_PROBES:
        raise ConfigurationError(f"probes={probes!r} is more than {_MOST_PROBES:,}; tens to hundreds are enough.")
    if reorthogonalize not in ("full", "none"):
        raise ConfigurationError(f"reorthogonalize={reorthogonalize!r} is neither 'full' nor 'none'.")
    if basis not in tuple(BASIS_DTYPES):
        raise ConfigurationError(f"basis={basis!r} is neither 'fp32' nor 'bf16'.")
