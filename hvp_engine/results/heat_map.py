"""The figure of distances: a heat map of all pairs of blocks, and beside it how far each entry can be trusted."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.cells import cell_len

from hvp_engine.results.estimate import Estimate, MatrixEstimate
from hvp_engine.results.page import drawable, figure_at, labels
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.words import UNKNOWN, number_text

_NUMBERED_CELLS = 16
_NO_NUMBER, _HATCH = "0.85", "0.75"
_LEAST_SCALE = 1e-3  # half-widths below it are all as good as none


def plot_js(
    names: Sequence[str],
    js: MatrixEstimate,
    js0: Estimate,
    zero_blocks: Collection[str],
    path: str | os.PathLike[str],
    matrix: str | None = None,
) -> None:
    """Draw the Jensen-Shannon distances between all blocks, and the half-widths of their 95 % bars, as heat maps.

    Entries have their numbers if they are few. An entry that its bar exceeds is hatched, and one without a number, of a
    block of zero curvature say, is grey.

    Args:
        names: The blocks, 1 to about 100.
        js: Their Jensen-Shannon distances, (blocks, blocks).
        js0: The mean over pairs.
        zero_blocks: Names of the blocks of zero curvature.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format.
        matrix: Whose spectra they are, in words; None for the Hessian.

    Raises:
        ConfigurationError: If the suffix names no known format.
        RunFolderError: If the file cannot be written.
    """
    count = len(names)
    cell = 0.36 if count <= _NUMBERED_CELLS else max(0.1, 0.2 - 0.001 * count)
    side = max(2.2, cell * count)
    font = min(7.0, 62.0 * cell)
    shown = labels(drawable(names, path), 32)
    margin = 0.6 * font / 72.0 * max(map(cell_len, shown))
    zero = np.array([name in zero_blocks for name in names])
    left_out, itself = zero[:, None] | zero[None, :], np.eye(count, dtype=bool)
    value = np.where(left_out, np.nan, js.value)
    half = np.where(left_out, np.nan, np.where(itself, 0.0, np.maximum(js.high - js.value, js.value - js.low)))
    doubtful = np.isfinite(value) & ~itself & ~((half < value) | (half == 0.0))
    with figure_at(path, 2.0 * (side + 0.9) + margin, side + margin + 0.8) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes in (left, right):
            axes.set_xticks(range(count), shown, rotation=90, fontsize=font, parse_math=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_facecolor(_NO_NUMBER)
        left.set_yticks(range(count), shown, fontsize=font, parse_math=False)
        _map(figure, left, value, 1.0, "cividis", "Jensen–Shannon divergence (base 2)")
        most = max(_LEAST_SCALE, float(np.nanmax(half))) if np.isfinite(half).any() else 1.0
        _map(figure, right, half, most, "magma", "half-width of the 95 % bar")
        for i, j in np.argwhere(doubtful):
            cell_of = Rectangle((j - 0.5, i - 0.5), 1.0, 1.0, fill=False, hatch="////", edgecolor=_HATCH, linewidth=0.0)
            left.add_patch(cell_of)
        if count <= _NUMBERED_CELLS:
            _write(left, value, 1.0, np.where(doubtful, np.inf, half))
            _write(right, half, most, np.zeros_like(half))
        heading = "" if matrix is None else f"{drawable([matrix], path)[0]}\n"
        left.set_title(f"{heading}JS0 (mean over pairs) = {number_text(js0, 3).line}", fontsize=8, parse_math=False)
        right.set_title(_of_errors(half, js.reading, int(doubtful.sum()) // 2, int(zero.sum())), fontsize=8)


def _map(figure: Figure, axes: Axes, matrix: FloatArray, most: float, colours: str, label: str) -> None:
    """Draw one matrix with its scale from 0 to ``most``; what is no number is left out."""
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=0.0, vmax=most, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
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


def _of_errors(half: FloatArray, reading: str, doubtful: int, zero: int) -> str:
    known = np.isfinite(half[~np.eye(len(half), dtype=bool)]).any()
    parts = [f"95 % bars ({reading} reading)" if known else "no 95 % bars are known"]
    if doubtful:
        parts.append(f"hatched: bar exceeds entry ({doubtful})")
    if zero:
        parts.append(f"grey: zero curvature ({zero})")
    return "\n".join(parts)
