"""Numbers with their 95 % bars in words, so that none looks more certain than it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from hvp_engine.results.estimate import Estimate, relative
from hvp_engine.system.formatting import abbreviate, format_number, format_with_error

UNKNOWN = "?"
NOTHING = "–"
EXACT = "exact"

Scale = Literal["linear", "symlog", "log"]
"""Of eigenvalues in figures: as they are, logarithmic on either side of a linear part, or that of their magnitude."""

_LONGEST_MATRIX = 48  # characters of its name, which may be a stranger's
_DIGITS, _ERROR_DIGITS = 4, 2
_BOUNDS = {"≤": "or less", "≥": "or more"}


def matrix_of(config: object) -> str | None:
    """Name the matrix of a run in words, by its configuration; None for the Hessian, which goes without saying."""
    named = config.get("matrix") if isinstance(config, Mapping) else None
    return abbreviate([named.replace("_", " ")], _LONGEST_MATRIX)[0] if isinstance(named, str) else None


class NumberText(NamedTuple):
    """A number and its bar, as cells that stand one below the other, and as one cell."""

    value: str
    bar: str
    line: str


def half_width(estimate: Estimate) -> float:
    """Return the larger of the two sides of a bar: what may follow ``±``. It is nan where there is no bar."""
    return max(estimate.high - estimate.value, estimate.value - estimate.low)


def relative_half_width(estimate: Estimate) -> float:
    """Return the larger side of a bar as a share of the value."""
    return relative(half_width(estimate), estimate.value)


def is_known(value: float, half: float) -> bool:
    """Say whether a number exceeds its bar: a smaller one says nothing but how far from zero it may be."""
    return half < abs(value) or half == 0.0


def number_text(estimate: Estimate, digits: int = _DIGITS, bound: str = "") -> NumberText:
    """Write a number to the digits that its bar leaves: ``12.34 ± 0.21``.

    A number that its bar exceeds is not shown: ``? ± 0.8`` says that it is not known, and lies within 0.8 of zero. One
    without a bar is written to two digits, with ``± ?``, or behind ``bound``.

    Args:
        estimate: The number.
        digits: Most significant digits of the value.
        bound: ``"≤"`` or ``"≥"`` where the value is one of the truth, bar or not.
    """
    value, half = estimate.value, half_width(estimate)
    unseen = 0.5 * 10.0 ** (1 - digits) * abs(value)  # no larger than half a unit of the last digit
    if estimate.reading == EXACT and not half > unseen:
        return _beside(format_number(value, digits), EXACT)
    if not math.isfinite(half):
        return _without_bar(value, digits, bound)
    if not is_known(value, half):
        reach = max(abs(estimate.low), abs(estimate.high))
        return _beside(UNKNOWN, f"± {format_number(reach, _ERROR_DIGITS)}")
    if half == value == 0.0:
        return _beside("0", "")
    line = format_with_error(value, half, digits)
    shared, _, exponent = line.partition(")")
    shown, _, error = shared.removeprefix("(").partition(" ± ")
    bar = format_number(float(error + exponent), _ERROR_DIGITS) if exponent else error  # as short as can be
    return NumberText(shown + exponent, f"± {bar}", line)


def targets_text(tolerance: object) -> str:
    """Write what a job was to reach as the command takes it, ``w1=0.02 js=0.01``; a stranger's may be anything."""
    if isinstance(tolerance, Mapping):
        return " ".join(f"{name}={target}" for name, target in tolerance.items())
    return str(tolerance)


def _without_bar(value: float, digits: int, bound: str) -> NumberText:
    if math.isnan(value):
        return _beside(NOTHING, "")
    if bound:
        text = format_number(value, digits)
        return NumberText(text, _BOUNDS[bound], f"{bound} {text}")
    return _beside(format_number(value, _ERROR_DIGITS), f"± {UNKNOWN}")


def _beside(value: str, bar: str) -> NumberText:
    return NumberText(value, bar, f"{value} {bar}".rstrip())
