"""The life of a job, whatever it computes: identity, checks, head curvature, waves, checkpoints, progress, manifest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Generic

from hvp_engine.errors import HvpEngineError
from hvp_engine.jobs import basis
from hvp_engine.jobs.advancing import Round, advance, planned_waves
from hvp_engine.jobs.checkpoint import Checkpoint, sweep_finished
from hvp_engine.jobs.checkpoint_room import warn_of_too_little_disk
from hvp_engine.jobs.comparison import refuse_foreign
from hvp_engine.jobs.description import describe_suspect
from hvp_engine.jobs.environment import environment
from hvp_engine.jobs.first_sight import finished_or_usable, refuse_other_jobs, stored_identity
from hvp_engine.jobs.folder import located
from hvp_engine.jobs.follower import Briefing, Follower, briefing
from hvp_engine.jobs.identity import config_of, describe, facts, values
from hvp_engine.jobs.job import Job, Result, ResultT, StateT, WaveState
from hvp_engine.jobs.keeping import Keeping, as_first_known, remember_tested
from hvp_engine.jobs.sharing import refuse_other_folders, refuse_unequal, share_out
from hvp_engine.jobs.sittings import Sittings
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.verification import product_noise
from hvp_engine.processes.team import ALONE, Team
from hvp_engine.scheduling.policy import spare, usable
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.memory import budget as free_budget
from hvp_engine.system.phases import phase, shows_phases
from hvp_engine.system.progress import ProgressReporter
from hvp_engine.system.run_files import is_finished
from hvp_engine.system.signals import ending_signals_raise

__all__ = ["Job", "Result", "ResultT", "WaveState", "run"]


@shows_phases
@failures_in_words("the job ran")
def run(
    job: Job[StateT, ResultT],
    build: Callable[[], CurvatureOperator],
    out: str | PathLike[str] | None,
    progress: bool | None,
    team: Team = ALONE,
) -> ResultT:
    """Run a job from its beginning, or from its last checkpoint, to its end; return what is complete already.

    Args:
        job: What to compute.
        build: Makes the operator.
        out: Run folder for results and checkpoints; None keeps neither.
        progress: True shows progress, False hides it, None shows it on a terminal.
        team: The processes that work on it; all of them call this at once, and each gets the result.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    started = time.monotonic()
    folder = None if out is None else located(out)
    refuse_other_folders(folder, team)  # the first exchange: those that have none would not take part in the next one
    is_complete = folder is not None and team.from_first(partial(finished_or_usable, folder))
    operator = build()
    operator.checked = job.settings.check
    operator.hold_steady()
    config = config_of(job, operator)
    described = {**config, **describe(operator)}
    refuse_unequal(described, team)
    if folder is not None:
        team.from_first(partial(refuse_other_jobs, job, folder, described))
    if not is_complete:
        basis.make_room(job, operator)
        share_out(job, operator, folder, team)
    identity = {**described, "environment": environment(operator)}
    work = _Work(job, operator, identity, config, progress if team.first else False, team)
    sittings = Sittings(identity["environment"], started)
    if folder is None:
        return _compute(work, sittings, None)
    with ending_signals_raise() as ending:
        identity |= values(operator, team)
        if is_complete:
            return _finished(job, folder, identity, team)
        with _checkpoint(folder, identity, team) as checkpoint:
            if team.from_first(partial(is_finished, folder)):  # by another job, just before this one locked the folder
                return _finished(job, folder, identity, team)
            sittings.follow(checkpoint.recall("sittings"), folder)
            checkpoint.worked_before = sittings.before
            return _compute(work, sittings, Keeping(checkpoint, operator, sittings, ending))


@dataclass(frozen=True)
class _Work(Generic[StateT, ResultT]):
    """A job, what it multiplies with, what it is known by, and who takes part."""

    job: Job[StateT, ResultT]
    operator: CurvatureOperator
    identity: dict[str, Any]
    config: dict[str, Any]
    progress: bool | None
    team: Team


def _checkpoint(folder: Path, identity: dict[str, Any], team: Team) -> Checkpoint:
    """Take the run folder for all processes."""
    taken: list[Checkpoint] = []

    def take() -> Briefing:
        taken.append(Checkpoint(folder, identity))
        return briefing(taken[0])

    told = team.from_first(take)
    return taken[0] if taken else Follower(folder, told, team)


def _compute(work: _Work[StateT, ResultT], sittings: Sittings, keeping: Keeping | None) -> ResultT:
    """Take a job from its checks to its result, written where there is a folder for it."""
    job, operator, team = work.job, work.operator, work.team
    checkpoint = None if keeping is None else keeping.checkpoint
    try:
        products = {block: -(-count // team.axes.probes) for block, count in job.products(operator).items()}
        operator.compiler.expected = products
        verification = _verify(products, operator, checkpoint) if job.settings.check else None
        job.noise = team.from_first(partial(_noise, verification, job.settings, checkpoint))
        if job.settings.head_curvature:
            _form_head_curvature(products, job.settings, operator, checkpoint, work.progress)
        budget = team.least(usable(job.settings.memory, free_budget(operator.device) + operator.held_bytes))
        job.room = team.from_first(partial(_room, operator, budget, checkpoint))
        asked, job = job, basis.decided(job, operator, budget, checkpoint, team)
        streams = job.streams(operator)
        waves = planned_waves(operator, streams, budget, team)
    except HvpEngineError:
        if checkpoint is not None:
            checkpoint.abandon()
        raise
    if checkpoint is not None and team.first:
        warn_of_too_little_disk(checkpoint.run, streams, waves, team.axes.probes)
    states: list[StateT] = []
    with retained_heap(), ProgressReporter(job.name, 0, work.progress) as reporter:
        operator.compiler.tell = partial(reporter.advance, 0)
        advance(job, operator, Round(streams, waves, states), keeping, reporter, team)
        while (more := job.more(operator, states)) is not None:
            waves = planned_waves(operator, more, budget, team)
            advance(job, operator, Round(more, waves, states), keeping, reporter, team)
    operator.look()
    manifest = {
        "identity": work.identity,
        "config": work.config,
        "verification": verification,
        **facts(operator, len(states)),
        **basis.record(operator, asked, job),
        "seconds": round(sittings.seconds, 3),
        "sittings": sittings.record(),
    }
    with phase("evaluating what was found"):
        result = job.collect(operator, states, team.from_first(lambda: manifest))
    if checkpoint is not None:
        team.from_first(partial(checkpoint.complete, result.save))
    return result


def _finished(job: Job[StateT, ResultT], folder: Path, identity: dict[str, Any], team: Team) -> ResultT:
    """Return the result that a folder holds, if it is this job's."""
    found: list[ResultT] = []

    def check() -> None:
        stored = stored_identity(folder)
        refuse_foreign(stored or identity, identity, folder)  # before reading another kind's result
        found.append(job.load(folder))
        refuse_foreign(stored or {}, identity, folder)
        sweep_finished(folder, identity)

    team.from_first(check)
    return found[0] if found else job.load(folder)


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
        remember_tested(operator, checkpoint)
    return found


def _noise(verification: Mapping[str, Any] | None, settings: JobSettings, checkpoint: Checkpoint | None) -> float:
    """Return the relative error of one product, as the first run of the job knew it: decisions rest on it."""
    return as_first_known("noise", product_noise(verification, settings.precision), checkpoint)


def _room(operator: CurvatureOperator, budget: int, checkpoint: Checkpoint | None) -> float:
    """Return the bytes that there are for vectors, as the first run of the job knew it: decisions rest on it."""
    return as_first_known("room", spare(operator.scheduler.working_bytes, budget, operator.held_bytes), checkpoint)


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
