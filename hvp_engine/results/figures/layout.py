"""Pages of panels, one per block: how many stand side by side, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from hvp_engine.errors import ConfigurationError

MOST_PANELS = 200

_CELL, _SINGLE = (1.9, 1.5), (4.2, 2.9)  # inches of a panel among others, and alone
_CHARACTERS = 13  # of a title, per inch
_LEAST_INCHES, _MOST_INCHES = 0.5, 400.0  # along a side

Size = tuple[float, float]


class Layout(NamedTuple):
    """Rows and columns of a page of so many inches."""

    rows: int
    columns: int
    width: float
    height: float

    @property
    def characters(self) -> int:
        """How long the title of a panel may be."""
        return max(8, int(self.width / self.columns * _CHARACTERS))

    @property
    def ticks(self) -> int:
        """For how many numbers along its axis a panel has room."""
        return max(3, min(8, round(2.1 * self.width / self.columns)))


def layout_of(count: int, figsize: Size | None, foot: float = 0.3) -> Layout:
    """Lay out a page of panels.

    Args:
        count: Of panels.
        figsize: Width and height of the page in inches; None makes it a little wider than high, with few empty places
            in its last row.
        foot: Inches below the panels, unless ``figsize`` is given.

    Raises:
        ConfigurationError: ``figsize`` is no such pair.
    """
    width, height = _SINGLE if count == 1 else _CELL
    if figsize is not None:
        page = check_size(figsize, figsize)
        columns = min(count, max(1, round(math.sqrt(count * page[0] * height / (page[1] * width)))))
        return Layout(math.ceil(count / columns), columns, *page)
    widest = math.ceil(math.sqrt(count) * 1.15)
    columns = min(range(max(1, math.isqrt(count)), widest + 1), key=lambda columns: (-count % columns, -columns))
    rows = math.ceil(count / columns)
    return Layout(rows, columns, columns * width, rows * height + foot)


def check_size(figsize: Size | None, usual: Size) -> Size:
    """Return width and height of a page in inches.

    Raises:
        ConfigurationError: ``figsize`` is no such pair.
    """
    if figsize is None:
        return usual
    try:
        width, height = map(float, figsize)
    except (TypeError, ValueError, OverflowError):
        width = height = math.nan
    if not (_LEAST_INCHES <= width <= _MOST_INCHES and _LEAST_INCHES <= height <= _MOST_INCHES):
        raise ConfigurationError(
            f"figsize must be width and height in inches, {_LEAST_INCHES:g} to {_MOST_INCHES:g}, not {figsize!r}."
        )
    return width, height


def hide_rest(grid: Sequence[Axes], count: int, columns: int) -> None:
    """Leave the last places of a page empty, and let those above them have the numbers of a shared axis."""
    for place in grid[count:]:
        place.set_axis_off()
    for place in grid[max(0, count - columns) : count]:
        place.tick_params(labelbottom=True)
