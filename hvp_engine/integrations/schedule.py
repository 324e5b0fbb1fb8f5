"""At which steps of a training something is measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import islice
from typing import Literal, TypeAlias

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.settings import whole_number

_MOST_LISTED = 1_000_000

Every: TypeAlias = "int | Literal['log'] | Iterable[int]"


class Schedule:
    """Steps that are due: every so many, doubling ones, or a list."""

    def __init__(self, every: Every) -> None:
        """Take the steps.

        Args:
            every: A number N for 0, N, 2N, ...; ``"log"`` for 0, 1, 2, 4, 8, ...; or the steps themselves.

        Raises:
            ConfigurationError: It is none of these.
        """
        self._period = 0
        self._listed: list[int] = []
        if isinstance(every, str):
            if every != "log":
                raise ConfigurationError(f"every={every!r} must be a number of steps, 'log', or a list of steps.")
        elif isinstance(every, Iterable) and not hasattr(every, "__index__"):
            listed = list(islice(every, _MOST_LISTED + 1))
            if len(listed) > _MOST_LISTED:
                raise ConfigurationError(f"every= lists more than {_MOST_LISTED:,} steps; give a number of steps.")
            self._listed = sorted({whole_number("every", step, 0) for step in listed})
            if not self._listed:
                raise ConfigurationError("every=[] has no step; list one at least, or give a number of steps.")
        else:
            self._period = whole_number("every", every, 1)

    def due(self, after: int, step: int) -> bool:
        """Say whether there is a due step behind ``after``, up to ``step``: a loop may not come by at each of them."""
        if self._period:
            return step // self._period > after // self._period
        if self._listed:
            return bisect_right(self._listed, step) > bisect_right(self._listed, after)
        return step > after and (1 << step.bit_length() >> 1) > after  # the largest power of two up to step
