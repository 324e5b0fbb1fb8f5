"""Numbers as people read them: a few significant digits, and an error in the form of its value."""

from __future__ import annotations

import math

from hvp_engine.results.spectrum import Estimate

_PLAIN = range(-2, 4)  # decimal exponents that are written without an exponent


def format_number(value: float, digits: int = 4) -> str:
    """Write a number to ``digits`` significant digits: ``12.34``, ``-5.678e-09``; nan is a dash."""
    if math.isnan(value):
        return "–"
    if value == 0.0 or math.isinf(value):
        return f"{value:.0f}"
    rounded = f"{value:.{digits - 1}e}"
    exponent = int(rounded.partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}" if exponent in _PLAIN else rounded


def format_estimate(estimate: Estimate, digits: int = 4) -> str:
    """Write a value and its standard error with one exponent: ``12.34 ± 0.21``, ``(1.234 ± 0.021)e-09``.

    Two digits of the error decide how many of the value are shown, at most ``digits`` of the larger of both.
    An error too small to be seen beside the value keeps its own exponent: ``12.34 ± 4.5e-07``.
    """
    value, stderr = estimate
    if not (math.isfinite(value) and math.isfinite(stderr)):
        return f"{format_number(value, digits)} ± {format_number(stderr, 2)}"
    exponent = _exponent(max(abs(value), stderr), digits)
    error_digits = 1 - _exponent(stderr, 2) if stderr > 0.0 else math.inf
    scale = 0 if exponent in _PLAIN else exponent
    decimals = int(max(0, scale + min(digits - 1 - exponent, error_digits)))
    mantissa = f"{value / 10.0**scale:.{decimals}f} ± {stderr / 10.0**scale:.{decimals}f}"
    if stderr > 0.0 and float(mantissa.rpartition(" ")[2]) == 0.0:
        return f"{format_number(value, digits)} ± {format_number(stderr, 2)}"
    return f"({mantissa})e{scale:+03d}" if scale else mantissa


def format_count(count: int) -> str:
    """Write a count with separated thousands: ``66,945,024``."""
    return f"{count:,}"


def format_bytes(size: float) -> str:
    """Write a size in memory: ``12.5 GiB``, ``3.2 MiB``."""
    return f"{format_number(size / 2**30, 3)} GiB" if size >= 2**30 / 10 else f"{format_number(size / 2**20, 3)} MiB"


def _exponent(value: float, digits: int) -> int:
    return int(f"{value:.{digits - 1}e}".partition("e")[2])
