"""The figure of densities: all blocks as small multiples, with the eigenvalues that a density does not show."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike, NDArray

from hvp_engine.results.estimate import Band, Estimate
from hvp_engine.results.figures.arguments import chosen, given_axes, largest
from hvp_engine.results.figures.eigen_axis import EigenAxis, SignedDecades, axis_of, check_scale, shared
from hvp_engine.results.figures.labels import labels
from hvp_engine.results.figures.layout import MOST_PANELS, Size, hide_rest, layout_of
from hvp_engine.results.figures.marks import Marks, marks_of
from hvp_engine.results.figures.page import drawable, page
from hvp_engine.results.reading import Reading
from hvp_engine.results.smoothing import FloatArray, check_sigma
from hvp_engine.results.words import EXACT, Scale, number_text, targets_text
from hvp_engine.system.formatting import abbreviate, format_count

_LINE, _NEGATIVE, _BAND = "#1f4e79", "#762a83", "#e08214"
_KNOWN, _LIGHT = "#b2182b", "0.45"
_DECADES = 1e-6  # of the largest density, which panels show, or more of it:
_OF_ONE, _LEAST = 0.1, 1e-13  # of what a single eigenvalue adds, as far as doubles can tell it
_FURTHEST = 0.25  # of the range, by which a bar of an extreme lengthens the axis at most
_LONGEST = 7  # characters of the second line of a title, for each number that the axis has room for
_MARKED = 0.03  # of the range beyond an extreme: room for its mark
_FACTS = ("matrix", "precision", "distribution", "reorthogonalize", "seed")


class Drawn(Protocol):
    """A spectrum, as far as a figure needs it; see :class:`hvp_engine.results.spectrum.Spectrum`."""

    @property
    def numel(self) -> int:
        """Number of parameters."""

    @property
    def probes(self) -> int:
        """Number of probes."""

    @property
    def steps(self) -> NDArray[np.int64]:
        """Lanczos steps of each probe."""

    @property
    def reading(self) -> Reading:
        """How its coefficients are read."""

    @property
    def default_sigma(self) -> float:
        """Standard deviation of the default Gaussians."""

    def trace(self) -> Estimate:
        """Estimate the trace."""

    def smallest(self) -> Estimate:
        """Find the smallest eigenvalue."""

    def largest(self) -> Estimate:
        """Find the largest eigenvalue."""

    def density_band(self, grid: ArrayLike | None = None, sigma: float | None = None) -> Band:
        """Smooth into a density with its bars."""


@dataclass(frozen=True, eq=False)
class _Panel:
    """What one panel shows."""

    name: str
    spectrum: Drawn
    marks: Marks
    sigma: float
    axis: EigenAxis


def plot_spectra(
    spectra: Mapping[str, Drawn],
    settings: Mapping[str, object],
    path: str | os.PathLike[str] | None = None,
    *,
    blocks: str | Iterable[str] | None = None,
    figsize: Size | None = None,
    sigma: float | None = None,
    scale: str = "linear",
    share_x: bool = False,
    ax: Any = None,
) -> Any:
    """Draw one panel per block: the density on a logarithmic scale, its 95 % band, and marks at eigenvalues.

    A panel shows six decades below its largest density, or more where a single eigenvalue adds less. Known eigenvalues
    and Ritz values that weigh as little as one have ticks, whatever the density is there; triangles are the extremes,
    which the axis reaches, with their bars. The footer has the run's facts.

    Args:
        spectra: The spectra; of more than 200 those of the largest blocks are drawn, unless ``blocks`` chooses.
        settings: How the spectra were computed; the footer names those of ``matrix``, ``precision``, ``distribution``,
            ``reorthogonalize``, ``seed`` and ``tolerance`` that are known.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format. None writes nothing.
        blocks: Names of blocks, or globs; None for all.
        figsize: Width and height in inches.
        sigma: Standard deviation of the Gaussians; by default each block's own.
        scale: Of the eigenvalues: ``"linear"``, ``"symlog"``, or ``"log"`` for the magnitudes of both signs.
        share_x: Whether all panels show the same range.
        ax: Axes to draw on, one per block; then there is no page, no footer and no style of ours.

    Returns:
        The figure, which pyplot does not know; ``ax`` where it is given.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind.
        RunFolderError: The file cannot be written.
    """
    shown = chosen(spectra, blocks)
    shown = largest(shown, MOST_PANELS) if blocks is None else shown
    known_scale, width = check_scale(scale), None if sigma is None else check_sigma(sigma)
    if ax is not None:
        axes = given_axes(ax, [len(shown)], path, figsize)
        names = abbreviate(drawable(list(shown), path))
        panels = _panels(shown, names, width, known_scale, share_x)
        for place, panel in zip(axes, panels, strict=True):
            _draw(place, panel, 6)
            place.set_xlabel(_axis_text(panel.axis))
            place.set_ylabel("spectral density")
        return ax
    layout = layout_of(len(shown), figsize)
    names = labels(drawable(list(shown), path), layout.characters)
    panels = _panels(shown, names, width, known_scale, share_x)
    facts = _facts(panels, settings, width, len(spectra) - len(shown) if blocks is None else 0)
    footer = textwrap.wrap(drawable([facts], path)[0], int(layout.width * 18))
    height = layout.height + (0.15 * len(footer) if figsize is None else 0.0)
    with page(path, layout.width, height) as figure:
        grid = figure.subplots(layout.rows, layout.columns, squeeze=False, sharex=share_x).ravel()
        for place, panel in zip(grid, panels, strict=False):
            _draw(place, panel, layout.ticks)
        hide_rest(list(grid), len(shown), layout.columns)
        figure.supylabel("spectral density", fontsize=8)
        figure.supxlabel("\n".join([_axis_text(panels[0].axis), *footer]), fontsize=6.5, parse_math=False)
    return figure


def _panels(
    spectra: Mapping[str, Drawn], names: Sequence[str], sigma: float | None, scale: Scale, share_x: bool
) -> list[_Panel]:
    axes = [axis_of_spectrum(spectrum, sigma, scale) for spectrum in spectra.values()]
    if share_x:
        axes = [shared(axes)] * len(axes)
    return [
        _Panel(
            name,
            spectrum,
            marks_of(spectrum.reading, spectrum.smallest(), spectrum.largest()),
            spectrum.default_sigma if sigma is None else sigma,
            axis,
        )
        for name, spectrum, axis in zip(names, spectra.values(), axes, strict=True)
    ]


def axis_of_spectrum(spectrum: Drawn, sigma: float | None, scale: Scale) -> EigenAxis:
    """Lay out an axis that reaches all nodes with the tails of their Gaussians, the extremes and what bars they have.

    A bar that is a bound for any spectrum may be longer than the spectrum: it ends outside the panel then.
    """
    band, smallest, largest_one = spectrum.density_band(sigma=sigma), spectrum.smallest(), spectrum.largest()
    low, high = min(float(band.points[0]), smallest.value), max(float(band.points[-1]), largest_one.value)
    room = high - low
    ends = smallest.low, largest_one.high
    below = min(max(low - ends[0], 0.0), _FURTHEST * room) if math.isfinite(ends[0]) else 0.0
    above = min(max(ends[1] - high, 0.0), _FURTHEST * room) if math.isfinite(ends[1]) else 0.0
    width = spectrum.default_sigma if sigma is None else sigma
    return axis_of(scale, low - below, high + above, width).padded(_MARKED)


def _draw(axes: Axes, panel: _Panel, ticks: int) -> None:
    """Draw one panel on axes of anybody's."""
    spectrum, axis = panel.spectrum, panel.axis
    band = spectrum.density_band(axis.grid(), panel.sigma)
    top = float(band.value.max())
    single = 1.0 / (math.sqrt(2.0 * math.pi) * panel.sigma * spectrum.numel)
    floor = min(_DECADES * top, max(_OF_ONE * single, _LEAST * top))
    axis.apply(axes, "x", ticks)
    if axis.scale == "log":
        _curve(axes, band, band.points >= axis.threshold, 1.0, floor, _LINE, "-")
        if axis.negative:
            _curve(axes, band, band.points <= -axis.threshold, -1.0, floor, _NEGATIVE, "--")
    else:
        axes.axvline(0.0, color="0.75", linewidth=0.6, zorder=0)
        _curve(axes, band, np.ones(band.points.shape, bool), 1.0, floor, _LINE, "-")
    _mark(axes, panel.marks, axis)
    axes.set_yscale("log")
    axes.set_ylim(floor, 4.0 * top)
    axes.yaxis.set_major_locator(SignedDecades(0.0, ticks))
    axes.yaxis.set_minor_locator(SignedDecades(0.0, ticks, minor=True))
    axes.yaxis.set_minor_formatter(NullFormatter())
    facts = [f"n = {format_count(spectrum.numel)}", f"tr = {number_text(spectrum.trace(), 3).line}"]
    text = ("\n" if sum(map(len, facts)) > _LONGEST * ticks else ", ").join(facts)
    axes.set_title(f"{panel.name}\n{text}", linespacing=1.15, parse_math=False, usetex=False)


def _curve(
    axes: Axes, band: Band, part: NDArray[np.bool_], sign: float, floor: float, colour: str, dashes: str
) -> None:
    """Draw part of a density with its band."""
    drawn = floor / 10.0  # below the panel: a logarithmic axis has no zero
    x, value, low, high = (array[part] for array in (sign * band.points, band.value, band.low, band.high))
    if np.isfinite(low).any():
        axes.fill_between(x, np.maximum(low, drawn), np.maximum(high, drawn), color=_BAND, alpha=0.45, linewidth=0.0)
    axes.plot(x, np.maximum(value, drawn), color=colour, linewidth=0.7, linestyle=dashes)


def _mark(axes: Axes, marks: Marks, axis: EigenAxis) -> None:
    """Mark eigenvalues at the foot of a panel."""
    foot = axes.get_xaxis_transform()
    for values, height, colour, width in ((marks.light, 0.03, _LIGHT, 0.3), (marks.known, 0.05, _KNOWN, 0.5)):
        shown = _on(axis, values)
        axes.vlines(shown, 0.0, height, transform=foot, color=colour, linewidth=width)
    for extreme in (marks.smallest, marks.largest):
        if (places := _on(axis, np.array([extreme.value]))).size:
            bar = np.array([[extreme.value - extreme.low], [extreme.high - extreme.value]])
            bar = bar[::-1] if axis.scale == "log" and extreme.value < 0.0 else bar
            endless = float(np.ptp(axis.limits()))  # such a bar leaves the panel
            length = np.nan_to_num(np.maximum(bar, 0.0), posinf=endless)
            axes.errorbar(
                places,
                [0.09],
                xerr=length,
                fmt="v",
                color=_KNOWN,
                markersize=2.5,
                elinewidth=0.6,
                transform=foot,
            )


def _on(axis: EigenAxis, values: FloatArray) -> FloatArray:
    """Return where values are on an axis; those that a logarithmic one has no room for are left out."""
    if axis.scale != "log":
        return values
    return np.asarray(np.abs(values[np.abs(values) >= axis.threshold]))


def _axis_text(axis: EigenAxis) -> str:
    return "eigenvalue" if axis.scale != "log" else "magnitude of the eigenvalue (dashed: negative)"


def _facts(panels: Sequence[_Panel], settings: Mapping[str, object], sigma: float | None, left_out: int) -> str:
    bands = [panel.spectrum.density_band() for panel in panels]
    inexact = [panel.spectrum for panel, band in zip(panels, bands, strict=True) if band.reading != EXACT]
    most = max((spectrum.probes for spectrum in inexact), default=0)
    readings = sorted({band.reading for band in bands})
    known = [f"{key} {abbreviate([str(settings[key])], 32)[0]}" for key in _FACTS if key in settings]
    facts = [
        *([f"the {len(panels)} largest of {len(panels) + left_out} blocks"] if left_out else []),
        *([f"{_span(int(n) for s in inexact for n in s.steps)} Lanczos steps"] if inexact else []),
        *([f"{_span(s.probes for s in inexact)} {'probe' if most == 1 else 'probes'}"] if inexact else []),
        *([f"tolerance {abbreviate([targets_text(settings['tolerance'])], 48)[0]}"] if "tolerance" in settings else []),
        *known,
        f"reading {' and '.join(readings)}",
        "σ = √1e-5 × range" if sigma is None else f"σ = {sigma:.4g}",
        "band: 95 %",
        "triangles: extremes and their bars",
        "ticks: known eigenvalues",
        *(["grey: may be single ones"] if any(panel.marks.light.size for panel in panels) else []),
    ]
    return ", ".join(fact.replace(" ", "\u00a0") for fact in facts)  # lines break between facts only


def _span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}–{ordered[-1]}"
