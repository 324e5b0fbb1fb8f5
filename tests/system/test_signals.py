"""SIGTERM and SIGHUP raise where they come, once, and are delivered afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from hvp_engine.system import signals
from hvp_engine.system.signals import Ended, ending_signals_raise


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """List what would have ended this process."""
    found: list[int] = []
    monkeypatch.setattr(signals.os, "kill", lambda process, number: found.append(number))
    # Whoever started the tests, nohup say, may have had these signals ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises_inside_and_ends_the_process_after_the_cleaning_up(delivered: list[int], number: int) -> None:
    cleaned = []
    with pytest.raises(Ended) as caught, ending_signals_raise():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one does not stop this
            cleaned.append(list(delivered))
    assert cleaned == [[]] and delivered == [number]
    assert caught.value.code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_someone_swallowed_can_be_asked_for(delivered: list[int]) -> None:
    with pytest.raises(Ended), ending_signals_raise() as ending:
        ending.check()
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            delivered.append(0)
        ending.check()
    assert delivered == [0, signal.SIGTERM]


def test_handlers_of_others_stay(delivered: list[int]) -> None:
    seen: list[int] = []

    def own(number: int, frame: object) -> None:
        seen.append(number)

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ending_signals_raise():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    assert seen == [signal.SIGTERM] and delivered == []
    assert signal.getsignal(signal.SIGTERM) is own and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_handler_set_meanwhile_stays(delivered: list[int]) -> None:
    def own(number: int, frame: object) -> None:
        delivered.append(-number)

    with ending_signals_raise():
        signal.signal(signal.SIGTERM, own)
    assert signal.getsignal(signal.SIGTERM) is own


def test_other_threads_take_no_signals(delivered: list[int]) -> None:
    handlers = []

    def work() -> None:
        with ending_signals_raise():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]
