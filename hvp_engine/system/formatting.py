"""Numbers and names as people read them; every unit that the package prints has its one rule here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len

from hvp_engine.errors import printable

_PLAIN = range(-2, 4)  # decimal exponents that are written without an exponent
_DIGITS = 3  # significant ones of a number with a unit
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_LISTED = 5
NAME_CELLS = 200  # columns of a terminal that a name gets where there is no other limit
_TEXT = 500  # characters quoted of an exception: PyTorch lists forty backends in one


def format_number(value: float, digits: int = 4) -> str:
    """Write a number to ``digits`` significant digits: ``12.34``, ``-5.678e-09``; nan is a dash."""
    if math.isnan(value):
        return "–"
    if value == 0.0 or math.isinf(value):
        return f"{value:.0f}"
    rounded = f"{value:.{digits - 1}e}"
    exponent = int(rounded.partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}" if exponent in _PLAIN else rounded


def format_with_error(value: float, error: float, digits: int = 4) -> str:
    """Write a value and its error with one exponent: ``12.34 ± 0.21``, ``(1.234 ± 0.021)e-09``.

    Two digits of the error decide how many of the value are shown, at most ``digits`` of the larger of both. Errors are
    rounded up, and one too small to be seen is one unit of the value's last digit: what is written is true.
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{format_number(value, digits)} ± {format_number(error, 2)}"
    if value == error == 0.0:
        return "0 ± 0"
    exponent = _exponent(max(abs(value), error), digits)
    scale = 0 if exponent in _PLAIN else exponent
    error_decimals = 1 - _exponent(error, 2) if error > 0.0 else math.inf
    decimals = int(max(0, scale + min(digits - 1 - exponent, error_decimals)))
    units = max(1, math.ceil(round(error / 10.0**scale * 10.0**decimals, 6)))  # 0.21 is 21.000000000000004 of 0.01
    mantissa = f"{value / 10.0**scale:.{decimals}f} ± {units / 10.0**decimals:.{decimals}f}"
    return f"({mantissa})e{scale:+03d}" if scale else mantissa


def text_of(error: BaseException) -> str:
    """Return an exception's text; nothing where that fails itself, as a foreign exception's may."""
    try:
        return str(error)
    except Exception:
        return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text without its full stop; its type's name where it has no text."""
    lines = text_of(error).strip().splitlines()
    return _cut(lines[0].rstrip(".")) if lines else type(error).__name__


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def raised(error: BaseException) -> str:
    """Return an exception's type and the whole of its text on one line, without its full stop."""
    name = type(error).__name__
    text = " ".join(text_of(error).split()).rstrip(".")
    return f"{name}: {_cut(text)}" if text else name


def format_count(count: int) -> str:
    """Write a count with separated thousands: ``66,945,024``."""
    return f"{count:,}"


def format_bytes(size: float) -> str:
    """Write an amount of memory in binary units: ``6.41 GiB``, ``20.0 MiB``, ``512 B``."""
    for factor, unit in _SIZES:
        if size >= factor:
            return f"{format_number(size / factor, _DIGITS)} {unit}"
    return f"{size:.0f} B"


def format_traffic(size: float) -> str:
    """Write bytes read and written with an SI prefix, as bandwidths are given: ``2.04 TB``."""
    return _with_prefix(size, "B")


def format_flop(flop: float) -> str:
    """Write a number of floating-point operations with an SI prefix: ``13.9 EFLOP``."""
    return _with_prefix(flop, "FLOP")


def format_time(seconds: float) -> str:
    """Write a duration as people say it: ``420 ms``, ``3.10 s``, ``12.5 min``, ``27.5 h``."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{format_number(seconds / size, _DIGITS)} {unit}"
    if 0.0 < seconds < 1.0:
        return f"{format_number(1e3 * seconds, _DIGITS)} ms"
    return f"{format_number(seconds, _DIGITS)} s"


def format_clock(seconds: float) -> str:
    """Write a duration as a clock shows it, which does not jump while it counts: ``0:07``, ``1:02:03``."""
    if math.isinf(seconds):
        return "unknown"
    rounded = round(seconds)
    hours, minutes = rounded // 3600, rounded // 60 % 60
    return f"{hours}:{minutes:02d}:{rounded % 60:02d}" if hours else f"{minutes}:{rounded % 60:02d}"


def first_names(names: Sequence[str]) -> str:
    """List the first few of some names, and dots where there are more."""
    return ", ".join(abbreviate(names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")


def abbreviate(names: Sequence[str], cells: int = NAME_CELLS) -> list[str]:
    """Write names on one line each, in at most ``cells`` columns of a terminal; names that differ stay different.

    Long ones lose their middle, for layers differ at the start and parameters at the end. What cannot be seen is
    escaped (:func:`hvp_engine.errors.printable`). Names that would look alike get their place in the list.
    """
    literal = [printable(name) if name.strip() else ascii(name) for name in names]
    short = [shorten(name, cells) for name in literal]
    alike = Counter(text for _, text in set(zip(names, short, strict=True)))
    return [
        text if alike[text] == 1 else f"{shorten(name, cells - len(str(place)) - 2)} #{place}"
        for place, (name, text) in enumerate(zip(literal, short, strict=True), 1)
    ]


def shorten(text: str, cells: int) -> str:
    """Cut the middle out of a text that takes more than ``cells`` columns of a terminal."""
    if cell_len(text) <= cells:
        return text
    head = _leading(text, (cells - 1) // 2)
    return f"{head}…{_leading(text[::-1], cells - 1 - cell_len(head))[::-1]}"


def _leading(text: str, cells: int) -> str:
    """Return as much of the beginning of a text as fits."""
    taken = 0
    for place, character in enumerate(text):
        taken += cell_len(character)
        if taken > cells:
            return text[:place]
    return text


def _with_prefix(value: float, unit: str) -> str:
    power = 0
    while value >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000.0, power + 1
    return f"{format_number(value, _DIGITS)} {_PREFIXES[power]}{unit}"


def _exponent(value: float, digits: int) -> int:
    return int(f"{value:.{digits - 1}e}".partition("e")[2])
