"""The figure of distances: a heat map of all pairs of blocks, and beside it how far each entry can be trusted."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from rich.cells import cell_len

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate, MatrixEstimate
from hvp_engine.results.figures.arguments import given_axes
from hvp_engine.results.figures.labels import labels
from hvp_engine.results.figures.layout import Size, check_size
from hvp_engine.results.figures.page import drawable, page
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.words import UNKNOWN, number_text

MOST_BLOCKS = 200

_NUMBERED_CELLS = 16
_NO_NUMBER, _HATCH = "0.85", "0.75"
_LEAST_SCALE = 1e-3  # half-widths below it are all as good as none


class _Maps:
    """The two matrices of a figure, and what of them is no number."""

    def __init__(self, names: Sequence[str], js: MatrixEstimate, zero_blocks: Collection[str]) -> None:
        self.zero = np.array([name in zero_blocks for name in names])
        left_out, itself = self.zero[:, None] | self.zero[None, :], np.eye(len(names), dtype=bool)
        half = np.maximum(js.high - js.value, js.value - js.low)
        self.value = np.where(left_out, np.nan, js.value)
        self.half = np.where(left_out, np.nan, np.where(itself, 0.0, half))
        sure = (self.half < self.value) | (self.half == 0.0)
        self.doubtful: NDArray[np.bool_] = np.isfinite(self.value) & ~itself & ~sure
        self.reading = js.reading


def plot_js(
    names: Sequence[str],
    js: MatrixEstimate,
    js0: Estimate,
    zero_blocks: Collection[str],
    path: str | os.PathLike[str] | None = None,
    matrix: str | None = None,
    *,
    left_out: int = 0,
    figsize: Size | None = None,
    vmax: float = 1.0,
    ax: Any = None,
) -> Any:
    """Draw the Jensen-Shannon distances between all blocks, and the half-widths of their 95 % bars, as heat maps.

    Entries have their numbers if they are few. An entry that its bar exceeds is hatched, and one without a number, of a
    block of zero curvature say, is grey.

    Args:
        names: The blocks.
        js: Their Jensen-Shannon distances, (blocks, blocks).
        js0: The mean over pairs.
        zero_blocks: Names of the blocks of zero curvature.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format. None writes nothing.
        matrix: Whose spectra they are, in words; None for the Hessian.
        left_out: How many smaller blocks there are beside them, which the heading says.
        figsize: Width and height in inches.
        vmax: Where the colours of the distances end.
        ax: Axes to draw on: one for the distances, or two.

    Returns:
        The figure, which pyplot does not know; ``ax`` where it is given.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind.
        RunFolderError: The file cannot be written.
    """
    count = len(names)
    most = float(vmax) if isinstance(vmax, (int, float)) else math.nan
    if not 0.0 < most < math.inf:
        raise ConfigurationError(f"vmax must be a positive number, not {vmax!r}; distances are at most 1.")
    maps = _Maps(names, js, zero_blocks)
    heading = [] if matrix is None else [drawable([matrix], path)[0]]
    if left_out:
        heading.append(f"the {count} largest of {count + left_out} blocks")
    heading.append(f"JS0 (mean over pairs) = {number_text(js0, 3).line}")
    cell = 0.36 if count <= _NUMBERED_CELLS else max(0.1, 0.2 - 0.001 * count)
    shown = labels(drawable(names, path), 32)
    if ax is not None:
        given = given_axes(ax, (1, 2), path, figsize)
        _draw(given, maps, shown, None, most)
        given[0].set_title("\n".join(heading), parse_math=False, usetex=False)
        return ax
    font = min(7.0, 62.0 * cell)
    side, margin = max(2.2, cell * count), 0.6 * font / 72.0 * max(map(cell_len, shown))
    size = check_size(figsize, (2.0 * (side + 0.9) + margin, side + margin + 0.8))
    if figsize is not None:
        font = min(font, 62.0 * max(0.02, min((size[0] - margin) / 2.0 - 0.9, size[1] - margin - 0.8) / count))
    with page(path, *size) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _draw([left, right], maps, shown, font, most)
        left.set_title("\n".join(heading), fontsize=8, parse_math=False)
        right.set_title(_of_errors(maps), fontsize=8)
    return figure


def _draw(places: Sequence[Axes], maps: _Maps, names: Sequence[str], font: float | None, most: float) -> None:
    """Draw the distances on the first axes, and their errors on the second ones, if there are any."""
    count, left = len(names), places[0]
    errors = max(_LEAST_SCALE, float(np.nanmax(maps.half))) if np.isfinite(maps.half).any() else 1.0
    for axes in places:
        axes.set_xticks(range(count), names, rotation=90, fontsize=font, parse_math=False, usetex=False)
        axes.set_yticks(range(count), names, fontsize=font, parse_math=False, usetex=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_facecolor(_NO_NUMBER)
    _map(left, maps.value, most, "cividis", "Jensen–Shannon divergence (base 2)")
    for i, j in np.argwhere(maps.doubtful):
        cell_of = Rectangle((j - 0.5, i - 0.5), 1.0, 1.0, fill=False, hatch="////", edgecolor=_HATCH, linewidth=0.0)
        left.add_patch(cell_of)
    if count <= _NUMBERED_CELLS:
        _write(left, maps.value, most, np.where(maps.doubtful, np.inf, maps.half))
    for right in places[1:]:
        right.tick_params(labelleft=False)
        _map(right, maps.half, errors, "magma", "half-width of the 95 % bar")
        if count <= _NUMBERED_CELLS:
            _write(right, maps.half, errors, np.zeros_like(maps.half))


def _map(axes: Axes, matrix: FloatArray, most: float, colours: str, label: str) -> None:
    """Draw one matrix with its scale from 0 to ``most``; what is no number is left out."""
    figure: Figure | SubFigure = axes.figure
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=0.0, vmax=most, interpolation="nearest")
    bar = figure.colorbar(
        image, ax=axes, fraction=0.045, pad=0.02, extend="max" if np.nanmax(matrix, initial=0.0) > most else "neither"
    )
    bar.set_label(label, fontsize=7)
    bar.outline.set_visible(False)


def _write(axes: Axes, matrix: FloatArray, most: float, half: FloatArray) -> None:
    """Write the entries into their cells, to the digits that their bars leave."""
    for (i, j), number in np.ndenumerate(matrix):
        if np.isfinite(number):
            text = _short(number, float(half[i, j]))
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0.0} if text == UNKNOWN else None
            colour = "black" if box or number > 0.55 * most else "white"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=6, bbox=box)


def _short(number: float, half: float) -> str:
    """Write a number of at most 1 in four characters: to two decimals, or three where its bar allows."""
    if half == np.inf:
        return UNKNOWN
    if half >= 0.1:
        return f"{number:.1f}"
    small = number < 0.1 and half < 0.01
    return "<.001" if 0.0 < number < 5e-4 else f"{number:.3f}"[1:] if small and number else f"{number:.2f}"


def _of_errors(maps: _Maps) -> str:
    half, doubtful, zero = maps.half, int(maps.doubtful.sum()) // 2, int(maps.zero.sum())
    known = np.isfinite(half[~np.eye(len(half), dtype=bool)]).any()
    parts = [f"95 % bars ({maps.reading} reading)" if known else "no 95 % bars are known"]
    if doubtful:
        parts.append(f"hatched: bar exceeds entry ({doubtful})")
    if zero:
        parts.append(f"grey: zero curvature ({zero})")
    return "\n".join(parts)
