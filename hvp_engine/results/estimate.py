"""What a Monte-Carlo method gives: a value and how far it can be trusted."""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """A Monte-Carlo estimate: its value and its standard error (nan if a single probe gives none)."""

    value: float
    stderr: float
