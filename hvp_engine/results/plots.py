"""Figures of a run: densities of all blocks as small multiples, and a heat map of their distances."""

from __future__ import annotations

import math
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from rich.cells import cell_len

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.distances import mean_of_pairs
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system.formatting import abbreviate, format_count, format_number

_STYLE: Any = {
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 6.0,
    "ytick.labelsize": 6.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "hvp_engine",
    "text.usetex": False,
}
_LINE = "#1f4e79"
_BAND = "#e08214"
_DYNAMIC_RANGE = 1e-6
_DPI = 200
_MOST_PIXELS = 20_000  # along a side, whatever the number of blocks
_LABELLED_CELLS = 16
_FACTS = ("precision", "distribution", "reorthogonalize", "seed")


def plot_spectra(spectra: Mapping[str, Spectrum], path: str | os.PathLike[str], settings: Mapping[str, object]) -> None:
    """Draw one panel per block: the density on a logarithmic scale, with a band of one standard error.

    Every panel has its own range of eigenvalues, and shows six decades below its largest density. The footer
    has the run's facts.

    Args:
        spectra: The spectra, 1 to about 100 blocks.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format.
        settings: How the spectra were computed; the footer names those of ``precision``, ``distribution``,
            ``reorthogonalize`` and ``seed`` that are known.

    Raises:
        ConfigurationError: If the suffix names no known format.
        RunFolderError: If the file cannot be written.
    """
    columns = _columns(len(spectra))
    rows = math.ceil(len(spectra) / columns)
    width, height = (4.2, 2.9) if len(spectra) == 1 else (1.9, 1.5)
    footer = textwrap.wrap(_drawable([_facts(spectra, settings)], path)[0], int(columns * width * 18))
    names = _labels(_drawable(list(spectra), path), int(width * 13))
    with _figure(path, columns * width, rows * height + 0.15 * len(footer) + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name, spectrum in zip(panels, names, spectra.values(), strict=False):
            _density_panel(axes, name, spectrum)
        for axes in panels[len(spectra) :]:
            axes.set_axis_off()
        figure.supylabel("spectral density", fontsize=8)
        figure.supxlabel("\n".join(["eigenvalue", *footer]), fontsize=6.5, parse_math=False)


def plot_js(names: Sequence[str], js_distance: FloatArray, path: str | os.PathLike[str]) -> None:
    """Draw the Jensen-Shannon distances between all blocks as a heat map, with numbers if they are few.

    Args:
        names: The blocks, 1 to about 100.
        js_distance: Their Jensen-Shannon distances, shape (blocks, blocks).
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format.

    Raises:
        ConfigurationError: If the suffix names no known format.
        RunFolderError: If the file cannot be written.
    """
    count = len(names)
    cell = 0.36 if count <= _LABELLED_CELLS else max(0.1, 0.2 - 0.001 * count)
    side = max(2.2, cell * count)
    font = min(7.0, 62.0 * cell)
    labels = _labels(_drawable(names, path), 32)
    margin = 0.6 * font / 72.0 * max(map(cell_len, labels))
    with _figure(path, side + margin + 0.9, side + margin + 0.6) as figure:
        axes = figure.subplots()
        image = axes.imshow(js_distance, cmap="cividis", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_xticks(range(count), labels, rotation=90, fontsize=font, parse_math=False)
        axes.set_yticks(range(count), labels, fontsize=font, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if count <= _LABELLED_CELLS:
            for (i, j), value in np.ndenumerate(js_distance):
                colour = "black" if value > 0.55 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=6)
        bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
        bar.set_label("Jensen–Shannon distance (base 2)", fontsize=7)
        bar.outline.set_visible(False)
        axes.set_title(f"JS0 (mean over pairs) = {format_number(mean_of_pairs(js_distance), 3)}", fontsize=8)


@contextmanager
def _figure(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """Give a figure in the common style, and write it to ``path`` afterwards."""
    kind = Path(path).suffix.lstrip(".").lower()
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise ConfigurationError(f"{path} has no known image suffix; use one of {', '.join(sorted(known))}.")
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of SVG, whose text stays text
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        try:
            figure.savefig(path, dpi=min(_DPI, _MOST_PIXELS / max(width, height)), facecolor="white")
        except OSError as error:
            raise RunFolderError(f"{path} could not be written ({error}); choose another place.") from error


def _columns(count: int) -> int:
    """Choose the columns of the page: a little wider than high, with few empty panels in the last row."""
    widest = math.ceil(math.sqrt(count) * 1.15)
    return min(range(max(1, math.isqrt(count)), widest + 1), key=lambda columns: (-count % columns, -columns))


def _density_panel(axes: Axes, name: str, spectrum: Spectrum) -> None:
    grid, densities = spectrum.probe_densities()
    density = densities.mean(axis=0)
    top = float(density.max())
    floor = top * _DYNAMIC_RANGE
    axes.axvline(0.0, color="0.75", linewidth=0.6, zorder=0)
    if spectrum.probes > 1:
        stderr = densities.std(axis=0, ddof=1) / math.sqrt(spectrum.probes)
        low, high = (np.clip(density + sign * stderr, floor / 10.0, None) for sign in (-1.0, 1.0))
        axes.fill_between(grid, low, high, color=_BAND, alpha=0.45, linewidth=0.0)
    axes.plot(grid, np.maximum(density, floor / 10.0), color=_LINE, linewidth=0.7)
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
        f"{name}\nn = {format_count(spectrum.numel)}, tr = {format_number(spectrum.trace().value, 3)}",
        linespacing=1.15,
        parse_math=False,
    )


def _facts(spectra: Mapping[str, Spectrum], settings: Mapping[str, object]) -> str:
    steps = _span(int(s) for spectrum in spectra.values() for s in (spectrum.steps.min(), spectrum.steps.max()))
    probes = _span(spectrum.probes for spectrum in spectra.values())
    known = [f"{key} {abbreviate([str(settings[key])], 32)[0]}" for key in _FACTS if key in settings]
    band = "band: ± 1 standard error over probes"
    facts = [f"{steps} Lanczos steps", f"{probes} probes", *known, "σ = √1e-5 × range", band]
    return ", ".join(fact.replace(" ", "\u00a0") for fact in facts)  # lines break between facts only


def _span(values: Iterator[int]) -> str:
    ordered = sorted(values)
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}–{ordered[-1]}"


def _drawable(texts: Sequence[str], path: str | os.PathLike[str]) -> list[str]:
    """Escape characters that no font at hand has: as boxes, different names would look alike.

    Text of SVG stays text, drawn with the fonts of whoever looks at it.
    """
    if Path(path).suffix.lower() == ".svg" or all(map(str.isascii, texts)):
        return list(texts)
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in mpl.rcParams["font.family"]]

    def drawn(character: str) -> str:
        known = not character.isprintable() or any(font.get_char_index(ord(character)) for font in fonts)
        return character if known else character.encode("unicode_escape").decode("ascii")

    return ["".join(map(drawn, text)) for text in texts]


def _labels(names: Sequence[str], characters: int) -> list[str]:
    """Shorten names to ``characters``; where one is longer, all lose what they share at start and end."""
    if max(map(cell_len, names)) > characters and len(names) > 1:
        parts = [name.split(".") for name in names]
        head, tail = _shared(parts), _shared([part[::-1] for part in parts])
        if head + tail < min(map(len, parts)):
            names = ["…" * (head > 0) + ".".join(part[head : len(part) - tail]) + "…" * (tail > 0) for part in parts]
    return abbreviate(names, characters)


def _shared(parts: list[list[str]]) -> int:
    """Count the leading components that all names share."""
    return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))))
