"""Axes of eigenvalues: linear, logarithmic in the magnitude, or that with a linear part around zero for both signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import AutoMinorLocator, FuncFormatter, Locator, MaxNLocator, NullFormatter, NullLocator

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.smoothing import GRID_POINTS, FloatArray
from hvp_engine.results.words import Scale
from hvp_engine.system.formatting import format_number

_LEAST = 1e-6  # of the largest magnitude: more decades on each side of zero cannot be read
_LINEAR_PART = 0.5  # length of the linear part on each side of zero, in decades
_PLAIN = range(-2, 4)  # exponents of powers of ten that are written as numbers
_MOST_DECADES = 7  # beyond which minor ticks between them would touch each other
_POINT = 1e-3  # of the magnitude: what is narrower shows a single value


def check_scale(scale: str) -> Scale:
    """Return the name of a scale.

    Raises:
        ConfigurationError: It is none.
    """
    if scale not in get_args(Scale):
        raise ConfigurationError(f"scale={scale!r} is none of {', '.join(map(repr, get_args(Scale)))}.")
    return cast("Scale", scale)


@dataclass(frozen=True)
class EigenAxis:
    """How eigenvalues are laid out along an axis.

    Attributes:
        scale: ``"linear"``; ``"log"``, for magnitudes; or ``"symlog"``, a logarithm on either side of a linear part.
        low: The smallest eigenvalue that is shown.
        high: The largest one.
        threshold: End of the linear part; with ``"log"`` the smallest magnitude.
    """

    scale: Scale
    low: float
    high: float
    threshold: float

    @property
    def negative(self) -> bool:
        """Whether it shows negative eigenvalues of more than the threshold."""
        return self.low < -self.threshold

    def grid(self, points: int = GRID_POINTS) -> FloatArray:
        """Choose points that are dense where the axis is wide, (points,)."""
        if self.scale == "linear":
            return np.linspace(self.low, self.high, points)
        return self._value(np.linspace(self._place(self.low), self._place(self.high), points))

    def padded(self, share: float) -> EigenAxis:
        """Return an axis that is longer at both ends, by a share of its length on paper."""
        if self.scale == "linear":
            room = share * (self.high - self.low)
            return replace(self, low=self.low - room, high=self.high + room)
        ends = np.array([self._place(end) for end in (self.low, self.high)])
        low, high = self._value(ends + share * float(np.ptp(ends)) * np.array([-1.0, 1.0]))
        return replace(self, low=float(low), high=float(high))

    def limits(self) -> tuple[float, float]:
        """Return the ends of the axis, in the values that are drawn on it."""
        if self.scale != "log":
            return self.low, self.high
        nearest = max(self.threshold, self.low, -self.high)
        return nearest, max(abs(self.low), abs(self.high), 1.0001 * nearest)

    def apply(self, axes: Axes, which: Literal["x", "y"] = "x", ticks: int = 4) -> None:
        """Give an axis its scale, limits and ticks.

        Args:
            axes: Whose.
            which: The horizontal or the vertical one.
            ticks: About how many numbers there is room for.
        """
        axis: Axis = axes.xaxis if which == "x" else axes.yaxis
        set_scale: Any = axes.set_xscale if which == "x" else axes.set_yscale
        if self.scale == "symlog":
            set_scale("symlog", linthresh=self.threshold, linscale=_LINEAR_PART)
        else:
            set_scale(self.scale)
        (axes.set_xlim if which == "x" else axes.set_ylim)(*self.limits())
        low, high = self.limits()
        if high - low < _POINT * abs(low + high):  # several ticks would have the same label
            axis.set_major_locator(_Middle())
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
        elif self.scale == "linear":
            axis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10]))
            axis.set_minor_locator(AutoMinorLocator(2))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        else:
            least = self.threshold if self.scale == "symlog" else 0.0
            axis.set_major_locator(SignedDecades(least, ticks))
            axis.set_minor_locator(SignedDecades(least, ticks, minor=True))
            axis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))
        axis.set_minor_formatter(NullFormatter())

    def _place(self, value: float) -> float:
        size = abs(value) / self.threshold
        return math.copysign(size * _LINEAR_PART if size <= 1.0 else _LINEAR_PART + math.log10(size), value)

    def _value(self, places: FloatArray) -> FloatArray:
        size = np.abs(places) / _LINEAR_PART
        with np.errstate(over="ignore"):
            beyond = 10.0 ** (np.abs(places) - _LINEAR_PART)
        return np.asarray(np.copysign(self.threshold * np.where(size <= 1.0, size, beyond), places))


def axis_of(scale: Scale, low: float, high: float, sigma: float) -> EigenAxis:
    """Lay out an axis that shows all from ``low`` to ``high``.

    Args:
        scale: Its scale.
        low: The smallest eigenvalue.
        high: The largest one.
        sigma: Standard deviation of the Gaussians: where nothing finer is to be seen, the axis is linear.
    """
    most = max(abs(low), abs(high))
    return EigenAxis(scale, low, high, _round_down(max(sigma, _LEAST * most)))


def shared(axes: Sequence[EigenAxis]) -> EigenAxis:
    """Lay out one axis that shows what several ones do."""
    low, high = min(axis.low for axis in axes), max(axis.high for axis in axes)
    return axis_of(axes[0].scale, low, high, min(axis.threshold for axis in axes))


def power_text(value: float) -> str:
    """Write a number for an axis of powers of ten: ``0.01``, ``-5``, ``10⁻⁴``."""
    if value == 0.0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if exponent in _PLAIN:
        return f"{value:.5g}"
    digits = f"{abs(value) / 10.0**exponent:.5g}"
    sign, factor = "-" * (value < 0.0), "" if digits == "1" else f"{digits}\\cdot"
    return f"${sign}{factor}10^{{{exponent}}}$"


_Ticks = Callable[[Sequence[int], Sequence[float]], "list[float]"]


class SignedDecades(Locator):
    """Ticks at powers of ten of either sign, and at zero; at what lies between where there are few of them."""

    def __init__(self, least: float, most: int, minor: bool = False) -> None:
        """Describe the ticks.

        Args:
            least: Magnitudes below it have none, but for zero; 0 for an axis without zero.
            most: How many there may be, about.
            minor: Whether to give those without numbers, between the others.
        """
        self._least, self._most, self._minor = least, most, minor

    def __call__(self) -> list[float]:
        """Return the ticks of the axis as it is now."""
        assert self.axis is not None  # a locator is asked by its axis
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Return the ticks between two values."""
        low, high = float(min(vmin, vmax)), float(max(vmin, vmax))
        signs = [sign for sign, reach in ((-1.0, -low), (1.0, high)) if reach > self._least]
        inner = max(self._least, low, -high)
        most = max(abs(low), abs(high))
        if not signs or not 0.0 < inner < most:
            return [0.0] * (self._least > 0.0 and low <= 0.0 <= high and not self._minor)
        zero = [0.0] * (self._least > 0.0 and low <= 0.0 <= high)
        exponents = range(math.ceil(math.log10(inner) - 1e-9) - 1, math.floor(math.log10(most) + 1e-9) + 1)

        def ticks(powers: Sequence[int], digits: Sequence[float]) -> list[float]:
            sizes = [digit * 10.0**power for power in powers for digit in digits]
            found = [sign * size for sign in signs for size in sizes if size >= self._least * (1.0 - 1e-9)]
            return sorted(tick for tick in [*found, *zero] if low <= tick <= high)

        decades = ticks(exponents[1:], [1.0])
        few = sum(tick != 0.0 for tick in decades) < 2
        if few:
            major = ticks(exponents, [1.0, 2.0, 5.0])
        else:
            major = next(
                (found for found in self._sparser(ticks, exponents[1:]) if len(found) <= self._most), decades[-1:]
            )
        if not self._minor:
            return major if len(major) > 1 else [float(tick) for tick in MaxNLocator(self._most).tick_values(low, high)]
        between = ticks(exponents, np.arange(1.0, 10.0).tolist()) if len(decades) <= _MOST_DECADES else decades
        return sorted(set(between) - set(major))

    @staticmethod
    def _sparser(ticks: _Ticks, exponents: range) -> Iterator[list[float]]:
        """Yield fewer and fewer powers of ten: the largest stays, and those next to zero go first."""
        for stride in range(1, len(exponents) + 1):
            outwards = exponents[::-1][::stride][::-1]
            yield ticks(outwards, [1.0])
            yield ticks(outwards[1:], [1.0])


class _Middle(Locator):
    """A tick in the middle of an axis too short for more."""

    def __call__(self) -> list[float]:
        """Return the tick."""
        assert self.axis is not None  # a locator is asked by its axis
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Return the tick between two values."""
        return [0.5 * (vmin + vmax)]


def _round_down(value: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above a value."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(digit for digit in (1.0, 2.0, 5.0) if digit * power <= value * (1.0 + 1e-9) or digit == 1.0)
