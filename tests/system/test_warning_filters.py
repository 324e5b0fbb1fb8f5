"""vmap's announcement is kept from view, and the caller's filters are as they were."""

from __future__ import annotations

import warnings

import pytest

from hvp_engine.system.warning_filters import without_loop_warnings

TEXT = "There is a performance drop because we have not yet implemented the batching rule"


def test_the_announcement_alone_is_silent_and_the_filters_come_back() -> None:
    before = list(warnings.filters)
    with without_loop_warnings():
        with without_loop_warnings():
            warnings.warn(TEXT, UserWarning, stacklevel=1)
        warnings.warn(TEXT, UserWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="another"):
            warnings.warn("another", UserWarning, stacklevel=1)
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="performance drop"):
        warnings.warn(TEXT, UserWarning, stacklevel=1)


def test_no_filter_stays_where_someone_else_replaced_the_list_meanwhile() -> None:
    before = list(warnings.filters)
    hold, others = without_loop_warnings(), warnings.catch_warnings()
    hold.__enter__()
    others.__enter__()  # saves the list with the filter in it
    hold.__exit__()
    others.__exit__(None, None, None)
    assert warnings.filters == before


def test_a_filter_of_the_callers_own_stays() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        before = list(warnings.filters)
        with without_loop_warnings():
            pass
        assert warnings.filters == before
