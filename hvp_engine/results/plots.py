"""The figure of densities: all blocks as small multiples."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from hvp_engine.results.estimate import Band
from hvp_engine.results.page import drawable, figure_at, labels
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.words import EXACT, number_text, targets_text
from hvp_engine.system.formatting import abbreviate, format_count, format_number

_LINE = "#1f4e79"
_BAND = "#e08214"
_TICK = "#b2182b"
_DYNAMIC_RANGE = 1e-6
_FACTS = ("matrix", "precision", "distribution", "reorthogonalize", "seed")


def plot_spectra(spectra: Mapping[str, Spectrum], path: str | os.PathLike[str], settings: Mapping[str, object]) -> None:
    """Draw one panel per block: the density on a logarithmic scale, its 95 % band, and ticks at known eigenvalues.

    Every panel has its own range of eigenvalues, and shows six decades below its largest density. The footer
    has the run's facts.

    Args:
        spectra: The spectra, 1 to about 100 blocks.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format.
        settings: How the spectra were computed; the footer names those of ``matrix``, ``precision``, ``distribution``,
            ``reorthogonalize``, ``seed`` and ``tolerance`` that are known.

    Raises:
        ConfigurationError: If the suffix names no known format.
        RunFolderError: If the file cannot be written.
    """
    columns = _columns(len(spectra))
    rows = math.ceil(len(spectra) / columns)
    width, height = (4.2, 2.9) if len(spectra) == 1 else (1.9, 1.5)
    bands = [spectrum.density_band() for spectrum in spectra.values()]
    footer = textwrap.wrap(drawable([_facts(spectra, bands, settings)], path)[0], int(columns * width * 18))
    names = labels(drawable(list(spectra), path), int(width * 13))
    with figure_at(path, columns * width, rows * height + 0.15 * len(footer) + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name, spectrum, band in zip(panels, names, spectra.values(), bands, strict=False):
            _density_panel(axes, name, spectrum, band)
        for axes in panels[len(spectra) :]:
            axes.set_axis_off()
        figure.supylabel("spectral density", fontsize=8)
        figure.supxlabel("\n".join(["eigenvalue", *footer]), fontsize=6.5, parse_math=False)


def _columns(count: int) -> int:
    """Choose the columns of the page: a little wider than high, with few empty panels in the last row."""
    widest = math.ceil(math.sqrt(count) * 1.15)
    return min(range(max(1, math.isqrt(count)), widest + 1), key=lambda columns: (-count % columns, -columns))


def _density_panel(axes: Axes, name: str, spectrum: Spectrum, band: Band) -> None:
    grid, density = band.points, band.value
    top = float(density.max())
    floor = top * _DYNAMIC_RANGE
    drawn = floor / 10.0  # below the panel: a logarithmic axis has no zero
    axes.axvline(0.0, color="0.75", linewidth=0.6, zorder=0)
    if np.isfinite(band.low).any():
        axes.fill_between(
            grid, np.maximum(band.low, drawn), np.maximum(band.high, drawn), color=_BAND, alpha=0.45, linewidth=0.0
        )
    axes.plot(grid, np.maximum(density, drawn), color=_LINE, linewidth=0.7)
    known = _known_eigenvalues(spectrum)
    axes.vlines(known, 0.0, 0.04, transform=axes.get_xaxis_transform(), color=_TICK, linewidth=0.5)
    axes.set_yscale("log")
    axes.set_ylim(floor, 4.0 * top)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_yticks([10.0**k for k in range(math.ceil(math.log10(floor)), math.ceil(math.log10(4.0 * top)), 2)])
    axes.yaxis.set_minor_locator(NullLocator())
    centre = 0.5 * float(grid[0] + grid[-1])
    if grid[-1] - grid[0] < 1e-3 * abs(centre):  # a single atom: several ticks would have the same label
        axes.set_xticks([centre], [format_number(centre)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_title(
        f"{name}\nn = {format_count(spectrum.numel)}, tr = {number_text(spectrum.trace(), 3).line}",
        linespacing=1.15,
        parse_math=False,
    )


def _known_eigenvalues(spectrum: Spectrum) -> FloatArray:
    """Return what the first probe has found to be single eigenvalues."""
    rule = spectrum.reading.variance_reduced
    return np.asarray(rule.nodes[rule.accepted & (rule.probe == 0)])


def _facts(spectra: Mapping[str, Spectrum], bands: Sequence[Band], settings: Mapping[str, object]) -> str:
    inexact = [s for s, band in zip(spectra.values(), bands, strict=True) if band.reading != EXACT]
    most = max((spectrum.probes for spectrum in inexact), default=0)
    readings = sorted({band.reading for band in bands})
    known = [f"{key} {abbreviate([str(settings[key])], 32)[0]}" for key in _FACTS if key in settings]
    facts = [
        *([f"{_span(int(n) for s in inexact for n in s.steps)} Lanczos steps"] if inexact else []),
        *([f"{_span(s.probes for s in inexact)} {'probe' if most == 1 else 'probes'}"] if inexact else []),
        *([f"tolerance {abbreviate([targets_text(settings['tolerance'])], 48)[0]}"] if "tolerance" in settings else []),
        *known,
        f"reading {' and '.join(readings)}",
        "σ = √1e-5 × range",
        "band: 95 %",
        "ticks: known eigenvalues",
    ]
    return ", ".join(fact.replace(" ", "\u00a0") for fact in facts)  # lines break between facts only


def _span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}–{ordered[-1]}"
