"""Labels of points that do not cover each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_SIZE = 6  # points
_NEAR = 3.0
_ROUNDS = 4  # each a line of text further away


def place_labels(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write a label beside each point: it covers no label and no point, and is nearest to its own where that can be.

    Towards the middle of the axes and above is tried first. One that finds no such place stays there.

    Args:
        axes: Where the points are drawn already.
        points: In the coordinates of the data.
        labels: One per point.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # extents are known from here on
    middle = 0.5 * sum(axes.get_xlim())
    dots = [(float(x), float(y)) for x, y in axes.transData.transform(list(points))]
    covered = [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in dots]
    for label, point, dot in zip(labels, points, dots, strict=True):
        written = axes.annotate(
            label, point, (0, 0), textcoords="offset points", fontsize=_SIZE, parse_math=False, va="center"
        )
        places = list(_places(point[0] > middle))
        free = [place for place in places if _fits(axes, _moved(written, place), covered)]
        own = (place for place in free if _is_nearest(_moved(written, place), dot, dots))
        covered.append(_moved(written, next(own, (free or places)[0])))


def _places(is_right: bool) -> Iterator[tuple[str, float, float]]:
    """Yield places of a label: how it is aligned, and its offset from the point in points."""
    sides = ("right", "left") if is_right else ("left", "right")
    for number in range(_ROUNDS):
        up = _NEAR + 0.5 * _SIZE + number * 1.2 * _SIZE
        for away in (up, -up):
            for side in (*sides, "center"):
                across = {"left": _NEAR, "right": -_NEAR, "center": 0.0}[side]
                yield side, across, away


def _moved(written: Annotation, place: tuple[str, float, float]) -> Bbox:
    """Move a label to a place, and return what it covers."""
    side, across, up = place
    written.set(ha=side)
    written.xyann = (across, up)
    return written.get_window_extent()


def _fits(axes: Axes, extent: Bbox, taken: Sequence[Bbox]) -> bool:
    inside = axes.get_window_extent()
    kept = inside.x0 <= extent.x0 and extent.x1 <= inside.x1 and inside.y0 <= extent.y0 and extent.y1 <= inside.y1
    return bool(kept) and not extent.count_overlaps(list(taken))


def _is_nearest(extent: Bbox, dot: tuple[float, float], dots: Sequence[tuple[float, float]]) -> bool:
    """Say whether no other point is nearer to a label than its own."""

    def distance(x: float, y: float) -> float:
        return math.hypot(max(extent.x0 - x, 0.0, x - extent.x1), max(extent.y0 - y, 0.0, y - extent.y1))

    return distance(*dot) <= min(distance(*other) for other in dots)
