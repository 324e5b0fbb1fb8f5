"""What a kind of job is to the runner: its states, its result, and how it makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from hvp_engine.jobs.resumable import Resumable
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.scheduling.waves import StreamSizes


class WaveState(Resumable, Protocol):
    """The streams of one wave as they advance in lock step, one product with each per step."""

    @property
    def consistent(self) -> bool:
        """False while the state must not be saved."""

    @property
    def left(self) -> int:
        """Products that are left at most."""

    def step(self) -> int:
        """Advance every live stream by one product; return how many streams took part."""

    def release(self) -> None:
        """Free the vectors of a finished wave; what the result is made of stays."""


class Result(Protocol):
    """What a job returns."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """How the result was made."""

    def save(self, run: Path) -> None:
        """Write the result into a run folder by ``write_run``, its manifest in the document under ``"run"``."""


StateT = TypeVar("StateT", bound=WaveState)
ResultT = TypeVar("ResultT", bound=Result)


class Job(ABC, Generic[StateT, ResultT]):
    """What one kind of job adds to the common life: how streams start, and what is made of them in the end.

    Attributes:
        name: Shown with the progress.
        independent: Whether streams that run at once need nothing of each other, so that processes can share them.
        settings: What was asked for.
        noise: Relative error of one product; known before the first step.
        room: Bytes that there are for vectors; 0 until it is known, which is before the first step, too.
    """

    name: str
    independent: bool = True
    noise: float = 0.0
    room: float = 0.0

    def __init__(self, settings: JobSettings) -> None:
        """Take the settings."""
        self.settings = settings

    def config(self) -> dict[str, Any]:
        """Return what decides the job's numbers, beside its kind, the operator, blocks, parameters and data."""
        return self.settings.record()

    def products(self, operator: CurvatureOperator) -> dict[str, int]:
        """Return about how many products of each block the job will ask for."""
        return self.settings.products(operator.numel)

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return the sizes of the streams that the job begins with."""
        settings = self.settings
        return StreamSizes(operator.numel, settings.steps, settings.numbers, operator.dtype, settings.lanczos.kept)

    def more(self, operator: CurvatureOperator, states: Sequence[StateT]) -> StreamSizes | None:
        """Return the sizes of further streams that the finished ones ask for; None where the job is complete.

        It is asked again when these are finished. What it says must follow from the states alone.
        """
        return None

    @abstractmethod
    def start(self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[StateT]) -> StateT:
        """Make the state of a wave before its first step.

        Args:
            operator: What it multiplies with.
            wave: Its streams.
            finished: The states of all waves before it.
        """

    @abstractmethod
    def collect(self, operator: CurvatureOperator, states: list[StateT], manifest: dict[str, Any]) -> ResultT:
        """Make the result of the finished waves."""

    @abstractmethod
    def load(self, run: Path) -> ResultT:
        """Read the result of a finished run."""
