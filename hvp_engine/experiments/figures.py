"""The figures that drivers draw: one style, heat maps, curves with bands over seeds, scatters, bars."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from hvp_engine.experiments.point_labels import place_labels
from hvp_engine.results.figures.page import STYLE

# Okabe and Ito's colours, told apart by everyone; yellow, which white paper swallows, is left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DPI = 200
_NUMBERED_CELLS = 16
_QUARTILES = (25.0, 75.0)
_LINEAR = 2  # up to there a symmetric logarithmic axis is linear
_TIGHT: dict[str, Any] = {"frameon": False, "handletextpad": 0.1, "columnspacing": 0.8}  # a legend of a small panel
_HEADROOM = 1.25  # of bars, for the legend
_SHORT, _SHORTEST = 100.0, 4.0  # ends of a logarithmic axis, one over the other, below which it is written plainly


@contextmanager
def style() -> Iterator[None]:
    """Draw in the common style while the context is open."""
    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def page(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, NDArray[Any]]:
    """Make a figure of ``width`` x ``height`` inches with a grid of axes, (rows, columns); call it within the style.

    Args:
        rows: Of axes.
        columns: Of axes.
        width: Of the page; 5.5 is a text column of NeurIPS.
        height: Of the page.
        options: As for ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def image(figure: Figure, kind: str) -> bytes:
    """Return a figure's file: ``"png"`` or ``"pdf"``, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with style():
        for axes in figure.axes:
            _write_plainly(axes.xaxis)
            _write_plainly(axes.yaxis)
        metadata = {"CreationDate": None} if kind == "pdf" else {}
        figure.savefig(buffer, format=kind, dpi=_DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def panels(count: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``count`` axes in rows of ``columns``, of ``width`` x ``height`` inches each.

    Args:
        count: Of axes.
        columns: Of axes in a row; where there are fewer, the page is narrower.
        width: Of one.
        height: Of one.
        options: As for ``Figure.subplots``.
    """
    across = min(columns, count)
    rows = -(-count // across)
    figure, axes = page(rows, across, width * across, height * rows, **options)
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return figure, list(axes.flat[:count])


def label_logs(axes: Axes, values: Sequence[float]) -> None:
    """Make x logarithmic, with a tick at each of a few values and nowhere else."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_xticks([], minor=True)


def symmetric_logs(axes: Axes, low: float, high: float) -> None:
    """Make x linear near 0 and logarithmic beyond on both sides, with few ticks between two ends."""
    axes.set_xscale("symlog", linthresh=_LINEAR)
    ticks = [tick for tick in (-100, -10, -_LINEAR, 0, _LINEAR, 10, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def heat_map(
    axes: Axes,
    matrix: ArrayLike,
    labels: Sequence[str],
    errors: ArrayLike | None = None,
    most: float | None = 1.0,
    colours: str = "cividis",
) -> AxesImage:
    """Draw a square matrix on a scale from 0 to ``most``, its rows and columns labelled.

    Args:
        axes: Where.
        matrix: (n, n); what is not finite is grey.
        labels: n of them; an empty list draws none.
        errors: Half-widths of bars, (n, n); an entry that its bar exceeds is left without its number.
        most: Top of the scale, the same for maps to be compared; None takes the largest entry.
        colours: A colour map of matplotlib.

    Returns:
        The image, for ``figure.colorbar``.
    """
    values = np.asarray(matrix, dtype=np.float64)
    top = float(np.nanmax(values)) if most is None else most
    drawn = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0.0, vmax=top, interpolation="nearest")
    axes.set_facecolor("0.85")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    font = min(6.0, 120.0 / max(1, len(values)))
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(places, labels, fontsize=font, parse_math=False)
    if len(values) <= _NUMBERED_CELLS:
        known = np.isfinite(values) if errors is None else np.isfinite(values) & (np.asarray(errors) < values)
        for i, j in np.argwhere(known):
            colour = "black" if values[i, j] > 0.55 * top else "white"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=0.8 * font)
    return drawn


def curves(axes: Axes, series: Mapping[str, tuple[ArrayLike, ArrayLike]], bars: bool = False) -> None:
    """Draw the median over seeds of each series, and a band from the first quartile to the third.

    Args:
        axes: Where; its scales are the caller's.
        series: x (points,) and y (seeds, points) by label; seeds that are not finite at a point are left out there.
        bars: Draw the quartiles as bars at the points instead, for few points.
    """
    for label, (x, y) in series.items():
        rows = np.atleast_2d(np.asarray(y, dtype=np.float64))
        rows = np.where(np.isfinite(rows), rows, np.nan)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice")  # a point that no seed has reached
            middle = np.nanmedian(rows, axis=0)
            low, high = np.nanpercentile(rows, _QUARTILES, axis=0)
        (line,) = axes.plot(x, middle, linewidth=1.0, label=label, marker="o" if bars else None, markersize=2.5)
        if bars:
            axes.errorbar(x, middle, (middle - low, high - middle), fmt="none", color=line.get_color(), elinewidth=0.8)
        elif len(rows) > 1:
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.25, linewidth=0.0)
    axes.legend(fontsize=6, frameon=False)


def scatter(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> None:
    """Draw points, each with its label beside it where labels are given.

    Args:
        axes: Where.
        x: (points,), or (seeds, points): the mean with a bar of one standard deviation.
        y: Likewise.
        labels: One per point.
        groups: One per point: a colour and an entry of the legend for each that differs.
    """
    (across, x_bar), (up, y_bar) = _mean_and_deviation(x), _mean_and_deviation(y)
    names = list(groups) if groups is not None else [""] * len(across)
    for number, group in enumerate(dict.fromkeys(names)):
        chosen = np.array([name == group for name in names])
        colour = COLOURS[number % len(COLOURS)]
        bars = (None if y_bar is None else y_bar[chosen], None if x_bar is None else x_bar[chosen])
        label = group or None
        axes.errorbar(across[chosen], up[chosen], *bars, fmt="o", ms=3.0, elinewidth=0.6, color=colour, label=label)
    if labels is not None:
        place_labels(axes, list(zip(across.tolist(), up.tolist(), strict=True)), labels)
    if groups is not None:  # below: among points its marks would pass for points
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, **_TIGHT)


def bars(axes: Axes, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw groups of bars, a colour per member, the mean over seeds as height and a dot per seed.

    Args:
        axes: Where.
        groups: Values per seed, by group and then by member; groups may lack members.
    """
    members = list(dict.fromkeys(member for group in groups.values() for member in group))
    width = 0.8 / max(1, len(members))
    for number, member in enumerate(members):
        colour = COLOURS[number % len(COLOURS)]
        placed = [(place, groups[group][member]) for place, group in enumerate(groups) if member in groups[group]]
        offset = (number - 0.5 * (len(members) - 1)) * width
        centres = [place + offset for place, _ in placed]
        heights = [float(np.mean(values)) for _, values in placed]
        axes.bar(centres, heights, 0.9 * width, color=colour, alpha=0.6, label=member)
        dots = [(centre, value) for centre, (_, values) in zip(centres, placed, strict=True) for value in values]
        axes.plot(*zip(*dots, strict=True), ".", color="black", markersize=2.0)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(top=_HEADROOM * axes.dataLim.y1)
    axes.legend(fontsize=6, frameon=False, loc="upper right", ncols=3)


def _write_plainly(axis: Axis) -> None:
    """Write a logarithmic axis of few decades as 0.2 and not as 2 x 10^-1, and only as many numbers as fit."""
    low, high = sorted(axis.get_view_interval())
    if not isinstance(axis.get_major_locator(), LogLocator) or not 0.0 < high < _SHORT * low:
        return
    axis.set_major_locator(MaxNLocator(4) if high < _SHORTEST * low else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _mean_and_deviation(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    rows = np.asarray(values, dtype=np.float64)
    return (rows, None) if rows.ndim == 1 else (rows.mean(axis=0), rows.std(axis=0))
