"""The figure of eigenpairs: one panel per block, values with their residuals."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hvp_engine.results.figures.arguments import chosen, given_axes, largest
from hvp_engine.results.figures.eigen_axis import EigenAxis, axis_of, check_scale, shared
from hvp_engine.results.figures.labels import labels
from hvp_engine.results.figures.layout import MOST_PANELS, Size, hide_rest, layout_of
from hvp_engine.results.figures.page import drawable, page
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.words import Scale
from hvp_engine.system.formatting import abbreviate

_LINE, _OPEN = "#1f4e79", "#b2182b"
_NUMBER = "number, from the largest down"
_MARGIN = 0.05  # of a panel, above and below
_FINEST = 0.5  # of the smallest magnitude, where an axis begins to be linear


class Panel(NamedTuple):
    """What is shown of a block: its parameters, its values and residuals, (k,), and which have converged."""

    numel: int
    values: FloatArray
    residuals: FloatArray
    converged: NDArray[np.bool_]


def plot_panels(
    panels: Mapping[str, Panel],
    path: str | os.PathLike[str] | None = None,
    *,
    blocks: str | Iterable[str] | None = None,
    figsize: Size | None = None,
    scale: str = "linear",
    share_y: bool = False,
    ax: Any = None,
) -> Any:
    """Draw the eigenvalues of every block from the largest down, with residuals as bars.

    Those that have not converged are open circles.

    Args:
        panels: By name of the block; of more than 200 those of the largest blocks are drawn, unless ``blocks`` chooses.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format. None writes nothing.
        blocks: Names of blocks, or globs; None for all.
        figsize: Width and height in inches.
        scale: Of the eigenvalues: ``"linear"``, ``"symlog"``, or ``"log"`` for the magnitudes of both signs.
        share_y: Whether all panels show the same range of eigenvalues.
        ax: Axes to draw on, one per block; then there is no page and no style of ours.

    Returns:
        The figure, which pyplot does not know; ``ax`` where it is given.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind.
        RunFolderError: The file cannot be written.
    """
    shown = chosen(panels, blocks)
    shown = largest(shown, MOST_PANELS) if blocks is None else shown
    known_scale = check_scale(scale)
    axes_of = [_axis(panel, known_scale) for panel in shown.values()]
    if share_y:
        axes_of = [shared(axes_of)] * len(axes_of)
    value = "eigenvalue" if scale != "log" else "magnitude of the eigenvalue (triangles: negative)"
    if ax is not None:
        given = given_axes(ax, [len(shown)], path, figsize)
        names = abbreviate(drawable(list(shown), path))
        for place, name, panel, axis in zip(given, names, shown.values(), axes_of, strict=True):
            _draw(place, name, panel, axis)
            place.set_xlabel(_NUMBER)
            place.set_ylabel(value)
        return ax
    layout = layout_of(len(shown), figsize)
    names = labels(drawable(list(shown), path), layout.characters)
    with page(path, layout.width, layout.height) as figure:
        grid = figure.subplots(layout.rows, layout.columns, squeeze=False, sharey=share_y).ravel()
        for place, name, panel, axis in zip(grid, names, shown.values(), axes_of, strict=False):
            _draw(place, name, panel, axis)
        hide_rest(list(grid), len(shown), layout.columns)
        figure.supylabel(value, fontsize=8)
        figure.supxlabel(f"{_NUMBER} (bars: residuals; open: not converged)", fontsize=6.5)
    return figure


def _axis(panel: Panel, scale: Scale) -> EigenAxis:
    low = min(0.0, float((panel.values - panel.residuals).min()))
    high = max(0.0, float((panel.values + panel.residuals).max()))
    flat = 1.0 if low == high else 0.0
    sizes = np.abs(panel.values)[panel.values != 0.0]
    finest = _FINEST * float(sizes.min()) if sizes.size else 1.0
    return axis_of(scale, low - flat, high + flat, finest).padded(_MARGIN)


def _draw(axes: Axes, name: str, panel: Panel, axis: EigenAxis) -> None:
    order = np.argsort(-panel.values, kind="stable")
    values, residuals, converged = panel.values[order], panel.residuals[order], panel.converged[order]
    numbers = np.arange(1, len(values) + 1)
    below = (values < 0.0) & (axis.scale == "log")
    if axis.scale != "log":
        axes.axhline(0.0, color="0.75", linewidth=0.6, zorder=0)
    for shown, colour, filled in ((converged, _LINE, True), (~converged, _OPEN, False)):
        for part, marker in ((shown & ~below, "o"), (shown & below, "v")):
            if part.any():
                axes.errorbar(
                    numbers[part],
                    np.where(below, -values, values)[part],
                    residuals[part],
                    fmt=marker,
                    markersize=2.5,
                    color=colour,
                    markerfacecolor=colour if filled else "none",
                    elinewidth=0.6,
                )
    axis.apply(axes, "y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True))
    axes.set_title(name, parse_math=False, usetex=False)
