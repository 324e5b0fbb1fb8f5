"""States of the process: what nobody holds any more is restored."""

from __future__ import annotations

from hvp_engine.system.shared_state import SharedState


def test_a_hold_that_is_lost_on_the_way_out_is_left_all_the_same() -> None:
    log: list[str] = []
    state = SharedState(lambda: log.append("changed"), lambda _: log.append("restored"))
    lost = state.held()
    lost.__enter__()
    with state.held():
        del lost  # as when an interrupt comes before its __exit__ has begun
        assert log == ["changed"]
    assert log == ["changed", "restored"]
    with state.held():
        pass
    assert log == ["changed", "restored"] * 2
