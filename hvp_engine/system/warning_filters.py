"""A warning that the engine brings about and that means nothing to its user, kept from view while it works."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, cast

from hvp_engine.system.shared_state import Hold, SharedState

__all__ = ["without_loop_warnings"]

# vmap announces operations that it has to loop over: slower, not wrong.
_MESSAGE = "There is a performance drop"


class _Inserted(NamedTuple):
    """Where the filter was put."""

    filters: list[Any]
    entry: Any


def without_loop_warnings() -> Hold[_Inserted | None]:
    """Hold a filter for vmap's announcements in place; may be nested, and entered by several threads at once.

    ``warnings.catch_warnings`` is no help here: it puts the list that it found back, which of two threads the second
    one found with the first one's filter in it.
    """
    return _filter.held()


def _insert() -> _Inserted | None:
    """Put the filter first; return the list that it stands in, None where the caller has one like it."""
    filters = _filters()
    before = list(filters)
    warnings.filterwarnings("ignore", message=_MESSAGE)
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


_filter: SharedState[_Inserted | None] = SharedState(_insert, _remove)
