"""The figure of eigenpairs: one panel per block, values with their residuals."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from hvp_engine.results.page import drawable, figure_at, labels
from hvp_engine.results.smoothing import FloatArray

_LINE, _OPEN = "#1f4e79", "#b2182b"

Panel = tuple[str, FloatArray, FloatArray, NDArray[np.bool_]]  # name, values, residuals, which have converged


def plot_panels(panels: Sequence[Panel], path: str | os.PathLike[str]) -> None:
    """Draw the eigenvalues of every block from the largest down, with residuals as bars.

    Those that have not converged are open circles.

    Args:
        panels: One or more.
        path: Where to write; the suffix (.png, .pdf, .svg) chooses the format.

    Raises:
        ConfigurationError: If the suffix names no known format.
        RunFolderError: If the file cannot be written.
    """
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    width, height = (4.2, 2.9) if len(panels) == 1 else (1.9, 1.5)
    names = labels(drawable([name for name, *_ in panels], path), int(width * 13))
    with figure_at(path, columns * width, rows * height + 0.3) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, name, panel in zip(axes, names, panels, strict=False):
            _draw(place, name, panel)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        figure.supylabel("eigenvalue", fontsize=8)
        figure.supxlabel("number, from the largest down (bars: residuals; open: not converged)", fontsize=6.5)


def _draw(axes: Axes, name: str, panel: Panel) -> None:
    _, values, residuals, converged = panel
    order = np.argsort(-values, kind="stable")
    numbers = np.arange(1, len(values) + 1)
    axes.axhline(0.0, color="0.75", linewidth=0.6, zorder=0)
    for shown, colour, filled in ((converged[order], _LINE, True), (~converged[order], _OPEN, False)):
        if shown.any():
            axes.errorbar(
                numbers[shown],
                values[order][shown],
                residuals[order][shown],
                fmt="o",
                markersize=2.5,
                color=colour,
                markerfacecolor=colour if filled else "none",
                elinewidth=0.6,
            )
    axes.set_title(name, parse_math=False)
