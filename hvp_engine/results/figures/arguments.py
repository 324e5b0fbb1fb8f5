"""What callers say of a figure: which blocks, how large, on which axes; checked before anything is drawn."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from matplotlib.axes import Axes

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.figures.layout import Size
from hvp_engine.system.formatting import first_names


class _Sized(Protocol):
    @property
    def numel(self) -> int: ...


_T = TypeVar("_T")
_Block = TypeVar("_Block", bound=_Sized)


def chosen(blocks: Mapping[str, _T], wanted: str | Iterable[str] | None) -> dict[str, _T]:
    """Return the blocks that a figure is to show, in the order of ``wanted``.

    Args:
        blocks: All of them.
        wanted: Names or globs, or one of these; None for all.

    Raises:
        ConfigurationError: There is nothing in ``wanted``, or something that is no block.
    """
    if wanted is None:
        return dict(blocks)
    given = [wanted] if isinstance(wanted, str) else wanted
    patterns = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigurationError(f"blocks must be names of blocks or globs, not {wanted!r}.")
    found: dict[str, _T] = {}
    for pattern in patterns:
        names = [pattern] if pattern in blocks else fnmatch.filter(blocks, pattern)
        if not names:
            raise ConfigurationError(f"{pattern!r} is none of the blocks {first_names(list(blocks))}.")
        found |= {name: blocks[name] for name in names}
    if not found:
        raise ConfigurationError("blocks is empty; name at least one block, or leave it out to draw all of them.")
    return found


def largest(blocks: Mapping[str, _Block], most: int) -> dict[str, _Block]:
    """Return the ``most`` blocks with the most parameters, in their order; all of them where they are no more."""
    kept = set(sorted(blocks, key=lambda name: -blocks[name].numel)[:most])
    return {name: block for name, block in blocks.items() if name in kept}


def given_axes(ax: Any, counts: Iterable[int], path: str | os.PathLike[str] | None, figsize: Size | None) -> list[Axes]:
    """Return the axes that a caller wants drawn on.

    Args:
        ax: Axes, or a sequence or array of them.
        counts: How many there may be.
        path: Must be None, as must be ``figsize``: both are of a figure of its own.
        figsize: See there.

    Raises:
        ConfigurationError: Something else was given.
    """
    given = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
    wrong = next((one for one in given if not isinstance(one, Axes)), None)
    if wrong is not None:
        raise ConfigurationError(
            f"ax must be axes of matplotlib, or as many of them as there are panels, not {type(wrong).__name__}; "
            "figure.subplots() makes some."
        )
    if len(given) not in (allowed := tuple(counts)):
        wanted = " or ".join(map(str, allowed))
        raise ConfigurationError(
            f"ax has {len(given)} axes, but the figure has {wanted} panels; pass {wanted}, or choose blocks=."
        )
    if path is not None or figsize is not None:
        raise ConfigurationError(
            "path and figsize are those of a figure of its own; with ax=, leave them out, and save ax.figure by its "
            "savefig()."
        )
    return given
