"""What keeps a job's work in its run folder as it goes, and what a job takes as its first run knew it."""

from __future__ import annotations

from dataclasses import dataclass

from hvp_engine.jobs.checkpoint import Checkpoint
from hvp_engine.jobs.description import describe_suspect
from hvp_engine.jobs.job import WaveState
from hvp_engine.jobs.sittings import Sittings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.system.signals import Ending


@dataclass(frozen=True)
class Keeping:
    """A job's checkpoint, and what goes into it beside the work."""

    checkpoint: Checkpoint
    operator: CurvatureOperator
    sittings: Sittings
    ending: Ending

    def save(self, wave: int, state: WaveState) -> None:
        """Write a checkpoint of a wave."""
        if self.checkpoint.save(wave, state):
            self._note()

    def after_step(self, wave: int, state: WaveState, seconds: float) -> None:
        """Write a checkpoint where it is due, and end where the process was told to.

        Args:
            wave: Number of the wave.
            state: Its state.
            seconds: What the step took.
        """
        if state.consistent and self.checkpoint.due(seconds):
            self.save(wave, state)
        self.ending.check()

    def finish(self, wave: int, state: WaveState) -> None:
        """Record a completed wave."""
        self.checkpoint.finish(wave, state)
        self._note()

    def _note(self) -> None:
        """Keep the time, and which custom functions were tested: by now perhaps more than before the first step."""
        self.checkpoint.remember("sittings", {"sittings": self.sittings.record()})
        remember_tested(self.operator, self.checkpoint)


def as_first_known(name: str, value: float, checkpoint: Checkpoint | None) -> float:
    """Return what the first run of a job took for a number; it is kept in the first one."""
    if checkpoint is None:
        return value
    if (known := checkpoint.recall(name)) is not None:
        return float(known["value"])
    checkpoint.remember(name, {"value": value})
    return value


def remember_tested(operator: CurvatureOperator, checkpoint: Checkpoint) -> None:
    """Keep the names of the custom functions, and of the places that cut graphs, that were tested."""
    if operator.tested:
        checkpoint.remember("functions", {"tested": sorted(map(describe_suspect, operator.tested))})
