"""Does a loss draw random numbers that matter? Seen by the states of the generators, before and after an evaluation.

Two values of a loss often agree although it is random: a layer that is dropped one time in twenty is there both times.
The states of the generators tell every draw. Not every draw matters: some models draw and do not use it (Hugging Face's
layer drop in eval mode), a loss may seed its generators itself, and another thread may have drawn. So what changed a
state is evaluated again, from states whose next numbers are smallest and largest, and two ordinary ones.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

from hvp_engine.errors import HvpEngineError, ObjectiveError
from hvp_engine.problem.generators import HIGH, LOW, Source, shared_sources, states, write_back
from hvp_engine.problem.held_generators import sources_of_data
from hvp_engine.system.failures import pass_on
from hvp_engine.system.formatting import raised

_BEGINNINGS: tuple[Callable[[Source], None], ...] = (
    lambda source: source.extreme(LOW),
    lambda source: source.extreme(HIGH),
    lambda source: source.seed(1),
    lambda source: source.seed(2),
)
_REPEATS = 3  # evaluations while another thread may draw: one without any draw shows that the loss does not
_VALUES = 8  # evaluations compared while another thread draws


class RandomnessWatch:
    """The states of all generators that one objective's loss can reach, from one evaluation to the next."""

    def __init__(self, held: list[Source]) -> None:
        """Watch the generators of the process, and those that model and loss hold."""
        self._held = held
        self._sources: tuple[Source, ...] = ()
        self._known: list[Any] = []

    def begin(self) -> None:
        """Take the states as they are; what changes them from here on is an evaluation, or another thread."""
        self._sources = (*shared_sources(), *self._held)
        self._known = states(self._sources)

    def changed(self) -> list[int]:
        """Return which generators have other states than known."""
        return [n for n, source in enumerate(self._sources) if source.read() != self._known[n]]

    def put_back(self) -> None:
        """Give the generators the states that they had."""
        write_back(self._sources, self._known)

    def snapshot(self) -> list[Any]:
        """Return all states."""
        return states(self._sources)

    def restore(self, before: list[Any]) -> None:
        """Put all states back, and take them as known."""
        self._known = before
        write_back(self._sources, before)

    def matters(self, drawn: list[int], value: float, again: Callable[[], float], *, training: bool) -> bool:
        """Say whether the numbers drawn decide a loss's value; the states are what they were afterwards.

        Args:
            drawn: The generators that changed.
            value: What the loss gave.
            again: Evaluates it again.
            training: Whether a module is in train mode: then a draw that shows in no value is still taken to matter,
                unless the loss seeds the generator itself.
        """
        if threading.active_count() > 1:
            somebody, certain = self._somebody_else(again, value)
            if somebody:
                return certain
        ends: list[list[Any]] = []
        try:
            for begin in _BEGINNINGS:
                for number in drawn:
                    begin(self._sources[number])
                try:
                    other = again()
                except HvpEngineError:  # not what it did before
                    return True
                if abs(other - value) > 1e-6 * max(abs(other), abs(value)):
                    return True
                ends.append([self._sources[number].read() for number in drawn])
        finally:
            self.put_back()
        return training and any(end != ends[0] for end in ends)

    def _somebody_else(self, again: Callable[[], float], value: float) -> tuple[bool, bool]:
        """Find out whether another thread draws; its generators are left alone then.

        Returns:
            Whether one does, or nothing is drawn any more; and whether the loss is random all the same, by its values.
        """
        begun = time.monotonic()
        for _ in range(_REPEATS):
            before = states(self._sources)
            again()
            if states(self._sources) == before:
                self._settle(before, again)
                return True, False
        before = states(self._sources)
        time.sleep(max(time.monotonic() - begun, 1e-3))
        if states(self._sources) == before:
            return False, False
        others = [again() for _ in range(_VALUES)]
        self._known = states(self._sources)
        return True, any(abs(other - value) > 1e-6 * max(abs(other), abs(value)) for other in others)

    def _settle(self, after: list[Any], again: Callable[[], float]) -> None:
        """Tell a loss that seeds its generators itself from another thread's draws, by an evaluation from where it was.

        Only the former arrives at the same states from both; it has the first ones put back, the latter's are left.
        """
        self.put_back()
        again()
        if states(self._sources) == after:
            self.put_back()
            return
        if not self.changed():
            write_back(self._sources, after)
        self._known = states(self._sources)


@contextlib.contextmanager
def fixed_numbers(seed: int = 0) -> Iterator[None]:
    """Give the process's generators the states of a seed inside, and their own afterwards."""
    sources = shared_sources()
    before = states(sources)
    try:
        for source in sources:
            source.seed(seed)
        yield
    finally:
        write_back(sources, before)


@contextlib.contextmanager
def _of_the_data(what: str, failed: str) -> Iterator[None]:
    """Say of an exception that the user's data raised it."""
    try:
        yield
    except Exception as error:
        pass_on(error)
        raise ObjectiveError(f"{what} {failed}: {raised(error)}. Mend the data, or pass a list of batches.") from error


class UndisturbedData:
    """Data whose reading draws its random numbers from a sequence of its own.

    A DataLoader draws from the process's generator, or from one that it was given, whenever a pass begins, and
    augmentations do at every batch. The caller's generators have their states back after every batch; the next one goes
    on where the last one ended.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        """Wrap the data; a list or tuple is read as it is."""
        self._data = data
        self._held: list[Source] | None = None  # not looked for yet
        self._own: dict[int, Any] = {}  # states of the sequence, by the place of their generator

    @property
    def kept(self) -> bool:
        """Whether every pass yields the very same objects."""
        return type(self._data) in (list, tuple)

    def __len__(self) -> int:
        """Return how many batches the data says that it has."""
        return len(self._data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Read a pass.

        Raises:
            ObjectiveError: The data fails.
        """
        if self.kept:
            yield from self._data
            return
        end = object()
        with self._drawing(), _of_the_data("The data", "could not be iterated"):
            iterator = iter(self._data)
        for number in count():
            with self._drawing(), _of_the_data(f"Batch {number} of the data", "could not be read"):
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        if self._held is None:
            self._held = sources_of_data(self._data)
        sources = (*self._held, *shared_sources())  # of these there are more once a GPU is in use
        before = states(sources)
        try:
            for place, state in self._own.items():
                sources[place].write(state)
            yield
        finally:
            try:
                drawn = self._own or dict(enumerate(before))
                after = dict(enumerate(states(sources)))
                if any(after[place] != state for place, state in drawn.items()):
                    self._own = after
            finally:
                write_back(sources, before)
