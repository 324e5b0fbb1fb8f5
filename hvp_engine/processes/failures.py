"""Who failed: every process leaves a word before it goes, so that the others can name it and not only miss it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from hvp_engine.errors import HvpEngineError, ProcessError
from hvp_engine.processes.launching import launched_rank
from hvp_engine.system.formatting import first_line, first_names, raised
from hvp_engine.system.locks import is_gone, myself

_PATIENCE = 5.0  # seconds in which a process that waits for a message says that it lives
_LONG = 30.0  # seconds in which the first process tells the user of an error
_PAUSE = 0.05
_TOLD = "told"
_notices: list[Notice] = []  # of this process's jobs


class Store(Protocol):
    """What processes can write to and read from while they cannot talk to each other."""

    def set(self, key: str, value: str) -> None:
        """Write."""

    def get(self, key: str) -> bytes:
        """Read what is there."""

    def check(self, keys: list[str]) -> bool:
        """Say whether all of these are there."""


class Notice:
    """The notice board of one job's processes.

    Attributes:
        places: What each is known by, by rank; none before they have met.
    """

    def __init__(self, store: Store, name: str, rank: int, size: int) -> None:
        """Take a place on the board.

        Args:
            store: Where it is.
            name: What tells this board from those of other jobs.
            rank: This process.
            size: How many processes there are.
        """
        self._store, self._name, self._rank, self._size = store, name, rank, size
        self.places: list[dict[str, str | int]] = []
        self._met = 0  # times
        self._gone = False  # the store, with the process that had it
        _notices.append(self)

    def leave(self, error: BaseException) -> None:
        """Say why this process ends."""
        text = str(error) if isinstance(error, HvpEngineError) else f"it raised {raised(error)}."
        here = myself()
        self._write(f"failure/{self._rank}", {"text": text, "who": f"process {here['pid']} on {here['host']}"})

    def cause(self, error: BaseException) -> ProcessError:
        """Find out whose end made a message fail, and put it into words.

        Args:
            error: What the message raised.
        """
        self._write(f"alive/{self._rank}", {})
        self._wait(lambda: self._failed() is not None or bool(self._lost()), _PATIENCE)
        failed, lost = self._failed(), self._lost()
        if failed is not None:
            rank, word = failed
            return ProcessError(f"Rank {rank} of {self._size} ({word['who']}) failed: {word['text']}", rank)
        how = "ended without a word, as a process does that is killed"
        if not lost:
            lost, how = self._silent(), "did not answer; perhaps it was killed, or its host is out of reach"
        if lost:
            which = f"{'Rank' if len(lost) == 1 else 'Ranks'} {first_names([str(rank) for rank in lost])}"
            return ProcessError(
                f"{which} of {self._size} {how} (by a person, a scheduler, or the system where memory ran out). With "
                "out= the work up to the last checkpoint is kept, and the same command goes on from there; torchrun "
                "--max-restarts does that by itself.",
                lost[0],
            )
        return ProcessError(
            f"The {self._size} processes lost touch ({first_line(error)}), though all of them live. Look for a network "
            "that fails, or a process that is much slower than the others; the same command goes on from the last "
            "checkpoint.",
            None,
        )

    def meet(self) -> None:
        """Wait until all processes have come here, however long that takes some of them.

        Raises:
            ProcessError: One of them has ended.
        """
        self._met += 1
        self._write(f"met/{self._met}/{self._rank}", {})
        late = list(range(self._size))
        while late and not self._gone:
            if self._failed() is not None or self._lost():
                raise self.cause(TimeoutError())
            late = [rank for rank in late if not self._has(f"met/{self._met}/{rank}")]
            time.sleep(_PAUSE)

    def _lost(self) -> list[int]:
        """Return the processes of this host that are not there any more; where the store went, the one that had it."""
        gone = [rank for rank, place in enumerate(self.places) if is_gone(place)]
        return gone or ([0] if self._gone and self._rank else [])

    def _silent(self) -> list[int]:
        """Return the processes of other hosts that have not said that they live."""
        here = myself()["host"]
        far = [rank for rank, place in enumerate(self.places) if place["host"] != here]
        return [rank for rank in far if not self._has(f"alive/{rank}")]

    def speaks(self) -> bool:
        """Say whether this process tells the user of its error; another one waits a little for the one that does."""
        if self._rank == 0:
            self._write(_TOLD, {})
            return True
        return not self._wait(lambda: self._has(_TOLD), _LONG)

    def _failed(self) -> tuple[int, dict[str, Any]] | None:
        for rank in range(self._size):
            if self._has(f"failure/{rank}"):
                return rank, json.loads(self._store.get(self._key(f"failure/{rank}")))
        return None

    def _key(self, what: str) -> str:
        return f"hvp_engine/{self._name}/{what}"

    def _has(self, what: str) -> bool:
        try:
            return self._store.check([self._key(what)])
        except RuntimeError:
            self._gone = True
            return False

    def _write(self, what: str, word: dict[str, str]) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(self._key(what), json.dumps(word))

    @staticmethod
    def _wait(until: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() >= end:
                return False
            time.sleep(_PAUSE)
        return True


@contextlib.contextmanager
def noted(notice: Notice | None) -> Iterator[None]:
    """Leave word of what ends the work inside, unless it is another process's end, or whoever ends them all."""
    try:
        yield
    except Exception as error:
        if notice is not None and not isinstance(error, ProcessError):
            notice.leave(error)
        raise


def speaks() -> bool:
    """Say whether this process tells the user of its error: the first one does, where it still can."""
    if _notices:
        return _notices[-1].speaks()
    if launched_rank() > 0:  # an error before the processes met is most likely everybody's
        time.sleep(_PATIENCE)
    return True
