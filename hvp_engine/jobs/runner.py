"""The life of a job, whatever it computes: identity, checks, head curvature, waves, checkpoints, progress, manifest."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from hvp_engine.errors import HvpEngineError
from hvp_engine.jobs import basis
from hvp_engine.jobs.checkpoint import Checkpoint, sweep_finished
from hvp_engine.jobs.comparison import refuse_foreign
from hvp_engine.jobs.description import describe_suspect
from hvp_engine.jobs.folder import located
from hvp_engine.jobs.identity import describe, describe_blocks, facts, values
from hvp_engine.jobs.resumable import Resumable
from hvp_engine.jobs.sittings import Sittings
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.verification import product_noise
from hvp_engine.scheduling.policy import choose_waves, spare, usable
from hvp_engine.scheduling.storages import rooms
from hvp_engine.scheduling.waves import StreamSizes
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.memory import budget as free_budget
from hvp_engine.system.phases import phase, shows_phases
from hvp_engine.system.progress import ProgressReporter
from hvp_engine.system.run_files import is_finished, read_manifest
from hvp_engine.system.signals import Ending, ending_signals_raise


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
        settings: What was asked for.
        noise: Relative error of one product; known before the first step.
        room: Bytes that there are for vectors; 0 until it is known, which is before the first step, too.
    """

    name: str
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
        return StreamSizes(operator.numel, settings.steps, settings.probes, operator.dtype, settings.lanczos.kept)

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


@shows_phases
@failures_in_words("the job ran")
def run(
    job: Job[StateT, ResultT],
    build: Callable[[], CurvatureOperator],
    out: str | PathLike[str] | None,
    progress: bool | None,
) -> ResultT:
    """Run a job from its beginning, or from its last checkpoint, to its end; return what is complete already.

    Args:
        job: What to compute.
        build: Makes the operator.
        out: Run folder for results and checkpoints; None keeps neither.
        progress: True shows progress, False hides it, None shows it on a terminal.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    started = time.monotonic()
    folder = None if out is None else located(out)
    operator = build()
    operator.checked = job.settings.check
    operator.hold_steady()
    if folder is None or not is_finished(folder):
        basis.make_room(job, operator)
    config = {**_kind(job.name, operator.name), **job.config(), "blocks": describe_blocks(operator.partition)}
    identity = {**config, **describe(operator)}
    sittings = Sittings(identity["environment"], started)
    compute = partial(_compute, job, operator, identity, config, progress, sittings)
    if folder is None:
        return compute(None)
    with ending_signals_raise() as ending:
        identity |= values(operator)
        if is_finished(folder):
            return _finished(job, folder, identity)
        with Checkpoint(folder, identity) as checkpoint:
            if is_finished(folder):  # by another process, just before this one could lock the folder
                return _finished(job, folder, identity)
            sittings.follow(checkpoint.recall("sittings"), folder)
            checkpoint.worked_before = sittings.before
            return compute(_Keeping(checkpoint, operator, sittings, ending))


@dataclass(frozen=True)
class _Keeping:
    """What keeps a job's work in its run folder as it goes."""

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
        _remember_tested(self.operator, self.checkpoint)


def _compute(
    job: Job[StateT, ResultT],
    operator: CurvatureOperator,
    identity: dict[str, Any],
    config: dict[str, Any],
    progress: bool | None,
    sittings: Sittings,
    keeping: _Keeping | None,
) -> ResultT:
    """Take a job from its checks to its result, written where there is a folder for it."""
    checkpoint = None if keeping is None else keeping.checkpoint
    try:
        products = job.products(operator)
        operator.compiler.expected = products
        verification = _verify(products, operator, checkpoint) if job.settings.check else None
        job.noise = _noise(verification, job.settings, checkpoint)
        if job.settings.head_curvature:
            _form_head_curvature(products, job.settings, operator, checkpoint, progress)
        budget = usable(job.settings.memory, free_budget(operator.device) + operator.held_bytes)
        job.room = _room(operator, budget, checkpoint)
        asked, job = job, basis.decided(job, operator, budget, checkpoint)
        streams = job.streams(operator)
        waves = _waves(operator, streams, budget)
    except HvpEngineError:
        if checkpoint is not None:
            checkpoint.abandon()
        raise
    states: list[StateT] = []
    with retained_heap(), ProgressReporter(job.name, 0, progress) as reporter:
        operator.compiler.tell = partial(reporter.advance, 0)
        _advance(job, operator, _Round(streams, waves, states), keeping, reporter)
        while (more := job.more(operator, states)) is not None:
            _advance(job, operator, _Round(more, _waves(operator, more, budget), states), keeping, reporter)
    operator.look()
    manifest = {
        "identity": identity,
        "config": config,
        "verification": verification,
        **facts(operator, len(states)),
        **basis.record(operator, asked, job),
        "seconds": round(sittings.seconds, 3),
        "sittings": sittings.record(),
    }
    with phase("evaluating what was found"):
        result = job.collect(operator, states, manifest)
    if checkpoint is not None:
        checkpoint.complete(result.save)
    return result


def _finished(job: Job[StateT, ResultT], folder: Path, identity: dict[str, Any]) -> ResultT:
    """Return the result that a folder holds, if it is this job's."""
    stored = _stored_identity(folder)
    refuse_foreign(stored or identity, identity, folder)  # before reading another kind's result
    finished = job.load(folder)
    refuse_foreign(stored or {}, identity, folder)
    sweep_finished(folder, identity)
    return finished


def _kind(job: str, matrix: str) -> dict[str, str]:
    """Tell kinds of jobs apart; the first kind had no others beside it, and its run folders have no name of it."""
    named = {"job": job, "matrix": matrix}
    return {key: value for key, value in named.items() if value not in ("slq", "hessian")}


def _stored_identity(folder: Path) -> dict[str, Any] | None:
    """Return the identity in a finished run's manifest; None where it has none, which its own kind of job explains."""
    facts = read_manifest(folder).get("run")
    identity = facts.get("identity") if isinstance(facts, dict) else None
    return identity if isinstance(identity, dict) else None


def _verify(products: Mapping[str, int], operator: CurvatureOperator, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Verify the operator, or know that an earlier run did; what does not apply (nan) is None, which JSON has."""
    if checkpoint is not None:
        tested = set((checkpoint.recall("functions") or {}).get("tested", []))
        operator.trust(lambda suspect: describe_suspect(suspect) in tested)
        if (known := checkpoint.recall("verification")) is not None:
            return known
    measured = asdict(operator.verify(products))
    found = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in measured.items()}
    if checkpoint is not None:
        checkpoint.remember("verification", found)
        _remember_tested(operator, checkpoint)
    return found


def _noise(verification: Mapping[str, Any] | None, settings: JobSettings, checkpoint: Checkpoint | None) -> float:
    """Return the relative error of one product, as the first run of the job knew it: decisions rest on it."""
    return _as_first_known("noise", product_noise(verification, settings.precision), checkpoint)


def _room(operator: CurvatureOperator, budget: int, checkpoint: Checkpoint | None) -> float:
    """Return the bytes that there are for vectors, as the first run of the job knew it: decisions rest on it."""
    return _as_first_known("room", spare(operator.scheduler.working_bytes, budget, operator.held_bytes), checkpoint)


def _as_first_known(name: str, value: float, checkpoint: Checkpoint | None) -> float:
    """Return what the first run of a job took for a number; it is kept in the first one."""
    if checkpoint is None:
        return value
    if (known := checkpoint.recall(name)) is not None:
        return float(known["value"])
    checkpoint.remember(name, {"value": value})
    return value


def _remember_tested(operator: CurvatureOperator, checkpoint: Checkpoint) -> None:
    if operator.tested:
        checkpoint.remember("functions", {"tested": sorted(map(describe_suspect, operator.tested))})


def _form_head_curvature(
    products: Mapping[str, int],
    settings: JobSettings,
    operator: CurvatureOperator,
    checkpoint: Checkpoint | None,
    progress: bool | None,
) -> None:
    """Form the head's curvature, or take it from an earlier run; one that went without goes on without."""
    earlier = None if checkpoint is None else checkpoint.recall("head")
    if earlier is not None and not earlier["formed"]:
        return
    shelf = None if checkpoint is None else checkpoint.shelf
    operator.form_head_curvature(products, progress, settings.head_curvature_tolerance, shelf)
    if checkpoint is not None:
        checkpoint.remember("head", {"formed": operator.head_curvature is not None})


def _waves(operator: CurvatureOperator, streams: StreamSizes, budget: int) -> list[list[Stream]]:
    """Group the streams of a round, and leave the memory of their vectors to them."""
    held = operator.held_bytes
    waves = choose_waves(streams, budget, operator.scheduler.working_bytes, held, rooms())
    operator.scheduler.reserve(waves.vector_bytes + held)
    return waves.groups


@dataclass(frozen=True)
class _Round(Generic[StateT]):
    """Streams that are run to their ends before the job is asked for more.

    Attributes:
        streams: Their sizes.
        waves: How they are grouped, unless an earlier run has grouped them otherwise.
        states: Those of all finished waves, to which this round's are added, without the vectors.
    """

    streams: StreamSizes
    waves: list[list[Stream]]
    states: list[StateT]


def _advance(
    job: Job[StateT, ResultT],
    operator: CurvatureOperator,
    now: _Round[StateT],
    keeping: _Keeping | None,
    reporter: ProgressReporter,
) -> None:
    """Run every wave of a round to its end, with checkpoints and progress."""
    waves = now.waves if keeping is None else keeping.checkpoint.waves(now.waves)
    ahead = sum(now.streams.steps_of(block) for wave in waves for block, _ in wave)
    for number, wave in enumerate(waves, len(now.states)):
        state = job.start(operator, wave, now.states)
        if keeping is not None:
            keeping.checkpoint.restore(number, state)
        reporter.resume(int(state.steps.sum()))
        ahead -= sum(now.streams.steps_of(block) for block, _ in wave)
        try:
            while not state.finished:
                begun = time.monotonic()
                reporter.expect(state.left + ahead)
                advanced = state.step()
                reporter.advance(advanced, f"step {state.position} of {now.streams.steps}")
                if keeping is not None:
                    keeping.after_step(number, state, time.monotonic() - begun)
            if keeping is not None:
                keeping.finish(number, state)
        except BaseException:
            if keeping is not None and state.consistent:
                keeping.save(number, state)
            raise
        state.release()
        now.states.append(state)
