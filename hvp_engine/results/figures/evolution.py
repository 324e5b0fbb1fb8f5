"""The figures of an evolution: numbers with their bars, and densities as heat maps, over the steps of training."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.figures.arguments import chosen, given_axes
from hvp_engine.results.figures.densities import Drawn, axis_of_spectrum
from hvp_engine.results.figures.eigen_axis import EigenAxis, SignedDecades, axis_of, check_scale, power_text, shared
from hvp_engine.results.figures.labels import labels
from hvp_engine.results.figures.layout import MOST_PANELS, Layout, Size, hide_rest, layout_of
from hvp_engine.results.figures.page import drawable, page
from hvp_engine.results.smoothing import FloatArray, check_sigma

_FIRST, _OTHERS = "#1f4e79", "0.55"  # lines: those with bars, and eigenvalues between the extremes
_EXTREME = "#d6604d"  # on a heat map
_HEIGHTS = 400  # cells of a heat map from its lowest to its highest eigenvalue
_DECADES = 1e-6  # of the largest density, which colours show
_UNEVEN = 5.0  # times the shortest distance of two steps is the longest, from which on steps are on a logarithmic axis
_NEAR = 3.0  # times the largest number, up to which panels reach out to the edge of stability
_LEVEL, _FLAT = 1e-3, 0.1  # of the size, below which numbers are all the same, and what is then shown around them
_MARGIN = 0.05  # of a panel, above and below

WHOLE = "full"  # what the block of all parameters is called

Series = Mapping[str, Sequence[Estimate | None]]


class Times(Protocol):
    """When the numbers of a figure were taken."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Ascending."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the runs are called."""

    @property
    def numbered(self) -> bool:
        """Whether names tell the steps."""


def plot_series(
    quantity: str,
    series: Sequence[Series],
    times: Times,
    path: str | os.PathLike[str] | None = None,
    *,
    blocks: str | Iterable[str] | None = None,
    figsize: Size | None = None,
    scale: str = "linear",
    share_x: bool = False,
    ax: Any = None,
    edge: Sequence[float | None] = (),
) -> Any:
    """Draw numbers over steps with their 95 % bars, one panel per block.

    Args:
        quantity: What they are.
        series: One or more numbers by block; the first and the last have points and bars, those between are thin lines.
        times: When they were taken.
        path: Where to write; None writes nothing.
        blocks: Names of blocks, or globs; None for all, of which the first 200 are drawn.
        figsize: Width and height in inches.
        scale: Of the numbers: ``"linear"``, ``"symlog"``, or ``"log"`` for magnitudes.
        share_x: Whether all panels show the same range of numbers.
        ax: Axes to draw on, one per block.
        edge: Two over the learning rate, for each step, drawn for the whole model; None where it is not known.

    Returns:
        The figure, which pyplot does not know; ``ax`` where it is given.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind, or there is nothing to draw.
        RunFolderError: The file cannot be written.
    """
    if not series or not series[0]:
        raise ConfigurationError(f"There is no {quantity} to draw: runs of a single block have none.")
    shown = _first(chosen(series[0], blocks), blocks)
    known = check_scale(scale)
    limits = [None if limit is None else Estimate(limit, math.nan) for limit in edge]
    whole = [name for name in shown if name == WHOLE or len(series[0]) == 1] if any(limits) else []
    ranges = {name: [value for one in series for value in one[name] if value is not None] for name in shown}
    for name in whole:
        seen = max((abs(one.value) for one in ranges[name]), default=0.0)
        ranges[name] += [one for one in limits if one is not None and one.value <= _NEAR * seen]
    axes_of = {name: _range_of(values, known) for name, values in ranges.items()}
    if share_x:
        axes_of = dict.fromkeys(axes_of, shared(list(axes_of.values())))

    def draw(axes: Axes, name: str, ticks: int) -> None:
        for place, one in enumerate(series):
            outermost = place in (0, len(series) - 1)
            _line(axes, times.steps, one[name], axes_of[name], outermost)
        if name in whole:
            values = [math.nan if one is None else one.value for one in limits]
            axes.plot(times.steps, values, color=_EXTREME, linestyle="--", linewidth=0.8)
        axes_of[name].apply(axes, "y", ticks)
        _time_axis(axes, times, ticks)

    text = quantity if known != "log" else f"magnitude of the {quantity}"
    foot = "bars: 95 %" + (", grey: the eigenvalues next to the largest one" if len(series) > 2 else "")
    foot += ", dashed: two over the learning rate" if whole else ""
    return _panels(list(shown), draw, (text, foot), times, path, figsize, ax)


def plot_densities(
    spectra: Mapping[str, Sequence[Drawn | None]],
    times: Times,
    path: str | os.PathLike[str] | None = None,
    *,
    blocks: str | Iterable[str] | None = None,
    figsize: Size | None = None,
    sigma: float | None = None,
    scale: str = "linear",
    share_x: bool = False,
    ax: Any = None,
) -> Any:
    """Draw densities over steps as heat maps, one per block, with lines at the extremes.

    Colours show six decades below the largest density of a panel, on a logarithmic scale.

    Args:
        spectra: Those of each block, one for each step; None where there is none.
        times: When they were taken.
        path: Where to write; None writes nothing.
        blocks: Names of blocks, or globs; None for all, of which the first 200 are drawn.
        figsize: Width and height in inches.
        sigma: Standard deviation of the Gaussians; by default each spectrum's own.
        scale: Of the eigenvalues: ``"linear"``, or ``"symlog"``, as which ``"log"`` is drawn too.
        share_x: Whether all panels show the same range of eigenvalues.
        ax: Axes to draw on, one per block.

    Returns:
        The figure, which pyplot does not know; ``ax`` where it is given.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind.
        RunFolderError: The file cannot be written.
    """
    shown = _first(chosen(spectra, blocks), blocks)
    known, width = check_scale(scale), None if sigma is None else check_sigma(sigma)
    of_signs = "linear" if known == "linear" else "symlog"
    axes_of = {
        name: shared([axis_of_spectrum(one, width, check_scale(of_signs)) for one in found if one is not None])
        for name, found in shown.items()
    }
    if share_x:
        axes_of = dict.fromkeys(axes_of, shared(list(axes_of.values())))

    def draw(axes: Axes, name: str, ticks: int) -> None:
        _heat(axes, times, shown[name], axes_of[name], width)
        for extreme in ("smallest", "largest"):
            values = [None if one is None else getattr(one, extreme)() for one in shown[name]]
            _line(axes, times.steps, values, axes_of[name], False, _EXTREME)
        axes_of[name].apply(axes, "y", ticks)
        _time_axis(axes, times, ticks)

    foot = "colours: six decades below a panel's largest density, lines: extremes"
    return _panels(list(shown), draw, ("eigenvalue", foot), times, path, figsize, ax)


def _first(found: dict[str, Any], blocks: object) -> dict[str, Any]:
    return found if blocks is not None else dict(list(found.items())[:MOST_PANELS])


def _panels(
    names: list[str],
    draw: Callable[[Axes, str, int], None],
    texts: tuple[str, str],
    times: Times,
    path: str | os.PathLike[str] | None,
    figsize: Size | None,
    ax: Any,
) -> Any:
    """Draw on a page of panels, or on the caller's axes; texts are that of the vertical axis, and the footer."""
    along = "step" if times.numbered else "run"
    if ax is not None:
        for place, name in zip(given_axes(ax, [len(names)], path, figsize), names, strict=True):
            draw(place, name, 5)
            place.set_title(drawable([name], path)[0], parse_math=False, usetex=False)
            place.set_xlabel(along)
            place.set_ylabel(texts[0])
        return ax
    layout: Layout = layout_of(len(names), figsize)
    footer = textwrap.wrap(f"{along} ({texts[1]})", int(layout.width * 18))
    titles = labels(drawable(names, path), layout.characters)
    with page(path, layout.width, layout.height) as figure:
        grid = figure.subplots(layout.rows, layout.columns, squeeze=False).ravel()
        for place, name, title in zip(grid, names, titles, strict=False):
            draw(place, name, layout.ticks)
            place.set_title(title, parse_math=False)
        hide_rest(list(grid), len(names), layout.columns)
        figure.supylabel(texts[0], fontsize=8)
        figure.supxlabel("\n".join(footer), fontsize=6.5)
    return figure


def _range_of(values: Sequence[Estimate], scale: Any) -> EigenAxis:
    """Lay out an axis for numbers with their bars."""
    ends = [end for one in values for end in (one.value, one.low, one.high) if math.isfinite(end)] or [0.0]
    low, high = min(ends), max(ends)
    size = max(abs(low), abs(high))
    flat = _FLAT * size or 1.0 if high - low < _LEVEL * size or size == 0.0 else 0.0
    sizes = [abs(one.value) for one in values if one.value and math.isfinite(one.value)]
    return axis_of(scale, low - flat, high + flat, 0.5 * min(sizes, default=1.0)).padded(_MARGIN)


def _line(
    axes: Axes,
    steps: Sequence[int],
    values: Sequence[Estimate | None],
    axis: EigenAxis,
    bars: bool,
    colour: str | None = None,
) -> None:
    """Draw numbers over steps; what is not known is left out, be it a number or a bar; endless bars leave the panel."""
    numbers = np.array([(math.nan,) * 3 if one is None else (one.value, one.low, one.high) for one in values])
    value, low, high = numbers.T
    if axis.scale == "log":
        flipped = value < 0.0
        low, high = np.where(flipped, -high, low), np.where(flipped, -low, high)
        value = np.abs(value)
    if not bars:
        axes.plot(steps, value, color=colour or _OTHERS, linewidth=0.6)
        return
    errors = np.nan_to_num(np.maximum([value - low, high - value], 0.0), posinf=float(np.ptp(axis.limits())))
    axes.errorbar(steps, value, errors, fmt="o-", color=_FIRST, markersize=2.0, linewidth=0.7, elinewidth=0.6)


def _heat(axes: Axes, times: Times, spectra: Sequence[Drawn | None], axis: EigenAxis, sigma: float | None) -> None:
    """Draw the densities of one block, a column for each step, on cells that own their masses."""
    points = axis.grid(_HEIGHTS)
    density = np.full((_HEIGHTS, len(spectra)), math.nan)
    for column, one in enumerate(spectra):
        if one is not None:
            density[:, column] = one.density_band(points, sigma).value
    top = float(np.nanmax(density))
    edges = np.concatenate((points[:1], 0.5 * (points[1:] + points[:-1]), points[-1:]))
    axes.pcolormesh(
        _edges(times),
        edges,
        np.maximum(density, _DECADES * top),
        norm=LogNorm(_DECADES * top, top),
        cmap="cividis",
        rasterized=True,
    )


def _logarithmic(times: Times) -> bool:
    """Say whether steps are so uneven that early ones could not be told from each other on a linear axis."""
    gaps = np.diff(times.steps)
    return times.numbered and float(gaps.max()) > _UNEVEN * float(gaps.min())


def _edges(times: Times) -> FloatArray:
    """Return the borders between steps, (steps + 1,); half way on a linear axis, the geometric mean on another one."""
    steps = np.array(times.steps, dtype=np.float64)
    if not _logarithmic(times):
        middle = 0.5 * (steps[1:] + steps[:-1])
        return np.concatenate(([steps[0] - (middle[0] - steps[0])], middle, [steps[-1] + (steps[-1] - middle[-1])]))
    middle = np.sqrt(np.maximum(steps[1:], 1.0) * np.maximum(steps[:-1], 0.25))
    first = -0.5 if steps[0] == 0.0 else steps[0] ** 2 / middle[0]
    return np.concatenate(([first], middle, [steps[-1] ** 2 / middle[-1]]))


def _time_axis(axes: Axes, times: Times, ticks: int) -> None:
    """Give the horizontal axis its scale and numbers, or the names of runs where there are no steps."""
    edges = _edges(times)
    if not times.numbered:
        axes.set_xticks(times.steps, times.names, rotation=90, parse_math=False, usetex=False)
        axes.set_xlim(edges[0], edges[-1])
        return
    if _logarithmic(times):
        least = float(max(1, times.steps[0]))
        axes.set_xscale("symlog", linthresh=least, linscale=0.3)
        axes.xaxis.set_major_locator(SignedDecades(least, ticks))
        axes.xaxis.set_minor_locator(SignedDecades(least, ticks, minor=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(edges[0], edges[-1])
