"""Warnings that the engine brings about and that mean nothing to its user, kept from view while it works."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple, cast

from hvp_engine.system.shared_state import Hold, SharedState

__all__ = ["without_loop_warnings", "without_sync_warnings"]


class _Inserted(NamedTuple):
    """Where the filter was put."""

    filters: list[Any]
    entry: Any


def without_loop_warnings() -> Hold[_Inserted | None]:
    """Hold a filter for what vmap says of operations that it has to loop over, which is slower and not wrong.

    May be nested, and entered by several threads at once. ``warnings.catch_warnings`` is no help here: it puts the list
    that it found back, which of two threads the second one found with the first one's filter in it.
    """
    return _loops.held()


def without_sync_warnings() -> Hold[_Inserted | None]:
    """Hold a filter, as :func:`without_loop_warnings` does, for what PyTorch says of its search for waits."""
    return _sync.held()


def _insert(message: str) -> _Inserted | None:
    """Put a filter first; return the list that it stands in, None where the caller has one like it."""
    filters = _filters()
    before = list(filters)
    warnings.filterwarnings("ignore", message=message)
    return None if filters[0] in before else _Inserted(filters, filters[0])


def _remove(inserted: _Inserted | None) -> None:
    """Take the filter out of the list that it was put into, and of the present one: others may have replaced it."""
    if inserted is None:
        return
    for filters in (inserted.filters, _filters()):
        if inserted.entry in filters:
            filters.remove(inserted.entry)


def _filters() -> list[Any]:
    return cast("list[Any]", warnings.filters)


_loops: SharedState[_Inserted | None] = SharedState(partial(_insert, "There is a performance drop"), _remove)
_sync: SharedState[_Inserted | None] = SharedState(
    partial(_insert, "Synchronization debug mode is a prototype"), _remove
)
