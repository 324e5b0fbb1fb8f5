"""The rounds of a job: its streams in waves that fit into memory, each run to its end by who has it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from hvp_engine.jobs.job import Job, ResultT, StateT
from hvp_engine.jobs.keeping import Keeping
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.processes.team import Team
from hvp_engine.scheduling.axes import deal, part_of_streams
from hvp_engine.scheduling.policy import choose_waves
from hvp_engine.scheduling.storages import rooms
from hvp_engine.scheduling.waves import StreamSizes
from hvp_engine.system.progress import ProgressReporter

Waves = list[list[Stream]]


@dataclass(frozen=True)
class Round(Generic[StateT]):
    """Streams that are run to their ends before the job is asked for more.

    Attributes:
        streams: Their sizes.
        waves: How they are grouped, unless an earlier run has grouped them otherwise.
        states: Those of all finished waves, to which this round's are added, without the vectors.
    """

    streams: StreamSizes
    waves: Waves
    states: list[StateT]


def planned_waves(operator: CurvatureOperator, streams: StreamSizes, budget: int, team: Team) -> Waves:
    """Group the streams of a round, those of every group of processes by themselves; leave their memory to them."""
    groups = team.axes.probes
    held = operator.held_bytes

    def plan() -> tuple[Waves, int]:
        parts = [streams] if groups == 1 else [part_of_streams(streams, group, groups) for group in range(groups)]
        working = operator.scheduler.working_bytes
        chosen = [choose_waves(part, budget, working, held, rooms()) for part in parts if part is not None]
        return [wave for waves in chosen for wave in waves.groups], max(waves.vector_bytes for waves in chosen)

    waves, vector_bytes = team.from_first(plan)
    operator.scheduler.reserve(vector_bytes + held)
    return waves


def advance(
    job: Job[StateT, ResultT],
    operator: CurvatureOperator,
    now: Round[StateT],
    keeping: Keeping | None,
    reporter: ProgressReporter,
    team: Team,
) -> None:
    """Run every wave of a round that is this process's to its end, with checkpoints and progress; learn of the others.

    Args:
        job: What is computed.
        operator: What it multiplies with.
        now: The round.
        keeping: Where the work is kept; None where it is not.
        reporter: Shows the progress of the waves that are run here.
        team: The processes that share them.
    """
    waves = now.waves if keeping is None else _recorded(keeping, now.waves, team)
    work = [sum(now.streams.steps_of(block) for block, _ in wave) for wave in waves]
    owners = deal([float(steps) for steps in work], team.axes.probes)
    mine = [number for number, owner in enumerate(owners) if owner == team.group]
    ahead = sum(work[number] for number in mine)
    first, found = len(now.states), dict[int, StateT]()
    for place in mine:
        number, wave = first + place, waves[place]
        state = job.start(operator, wave, [*now.states, *found.values()])
        if keeping is not None:
            keeping.checkpoint.restore(number, state)
        reporter.resume(int(state.steps.sum()))
        ahead -= work[place]
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
        found[place] = state
    now.states.extend(_of_everybody(job, operator, waves, found, now.states, team))


def _recorded(keeping: Keeping, planned: Waves, team: Team) -> Waves:
    """Return the waves that an earlier run of the job began with, or the planned ones, in every process."""
    waves = team.from_first(lambda: keeping.checkpoint.waves(planned))
    return waves if team.first else keeping.checkpoint.waves(waves)


def _of_everybody(
    job: Job[StateT, ResultT],
    operator: CurvatureOperator,
    waves: Waves,
    found: dict[int, StateT],
    before: Sequence[StateT],
    team: Team,
) -> list[StateT]:
    """Return the finished states of a round in the order of its waves, those of other processes without their vectors.

    Args:
        job: What is computed.
        operator: What it multiplies with.
        waves: Of the round.
        found: The states of those that were run here.
        before: Those of earlier rounds.
        team: The processes.
    """
    if team.axes.probes == 1:
        return list(found.values())
    mine: dict[int, tuple[int, dict[str, Any]]] = {}
    if team.leads:
        for place, state in found.items():
            mine[place] = state.position, {name: scalar.cpu() for name, scalar in state.scalars.items()}
    team.meet()
    known = {place: what for of_process in team.gathered(mine) for place, what in of_process.items()}
    states: list[StateT] = []
    for place, wave in enumerate(waves):
        if place in found:
            states.append(found[place])
            continue
        position, scalars = known[place]
        state = job.start(operator, wave, before)
        for name, scalar in state.scalars.items():
            scalar.copy_(scalars[name])
        state.resume(position)
        state.release()
        states.append(state)
    return states
