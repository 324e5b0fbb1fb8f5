"""How the processes of a job share it: axes by the rule or as asked for, parts of the data, one and the same job."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hvp_engine.errors import ConfigurationError
from hvp_engine.jobs.basis import HasStreams, keeping
from hvp_engine.jobs.follower import recorded_waves
from hvp_engine.krylov.registry import AUTO
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem import batches
from hvp_engine.problem.weights import check_split
from hvp_engine.processes.team import Axes, Team
from hvp_engine.scheduling import storages
from hvp_engine.scheduling.axes import DataSizes, Sharing, choose_axes, part_of_data
from hvp_engine.scheduling.policy import spare
from hvp_engine.scheduling.share import Share
from hvp_engine.system.json_files import checksum

log = logging.getLogger(__name__)

# Parts of an identity that each process finds out for itself, and what makes them equal.
_EQUAL = {
    "parameters": "Give every process the same weights: the same seed before the model is made, or the same file",
    "buffers": "Give every process the same buffers, from the same file say",
    "data": "Every process needs all of the data, in one order, and takes its part itself: no DistributedSampler, and "
    "the same seed for what is drawn",
    "precondition": "Give every process the same diagonal",
    "modules": "Make the model in the same way in every process",
    "blocks": "Give every process the same blocks",
}


class Shared(HasStreams, Protocol):
    """What is asked of a job here."""

    independent: bool


def share_out(job: Shared, operator: CurvatureOperator, run: Path | None, team: Team) -> None:
    """Arrange the processes, and let the operator multiply by this one's part of the data.

    Args:
        job: Has streams to share.
        operator: Has the data.
        run: The run folder: waves that an interrupted run began with are shared as they are.
        team: The processes.

    Raises:
        ConfigurationError: The arrangement that was asked for leaves a process without data, or batches do not cut.
    """
    if team.size == 1:
        return
    scheduler = operator.scheduler
    pieces = [size for size in team.gathered(scheduler.plan.microbatch) if size is not None]
    sizes = tuple(batches.samples(batch) for _, batch in operator.objective.batches())
    data = DataSizes(sizes, min(pieces, default=None))
    waves = None if run is None else team.from_first(lambda: recorded_waves(run))
    sharing = _sharing(job, operator, data, waves)
    axes = team.asked or team.from_first(lambda: choose_axes(team.size, sharing))
    most = data.cut_for(axes.data)
    if most != data.microbatch:
        try:
            with operator.objective.arithmetic():
                check_split(operator.objective, most or 0)
        except ConfigurationError:
            if team.asked is not None:
                raise
            data = replace(data, divisible=False)
            whole = replace(sharing, data=data)
            axes = team.from_first(lambda: choose_axes(team.size, whole))
            most = data.microbatch
    _refuse_idle(data, most, axes, team)
    team.arrange(axes)
    scheduler.plan.processes = team.record()
    log.info("processes: %s", scheduler.plan.processes)
    if axes.data > 1:
        share = part_of_data(data, most, team.member, axes.data)
        scheduler.take(Share(share, data.part(share), team.add_up), most)


def refuse_other_folders(run: Path | None, team: Team) -> None:
    """Refuse processes that were given other run folders, or of which some were given none; they meet here at first.

    Raises:
        ConfigurationError: They were.
    """
    mine = None if run is None else str(run)
    for rank, theirs in enumerate(team.gathered(mine)):
        if theirs != mine:
            ranks = " and ".join(map(str, sorted((team.rank, rank))))
            raise ConfigurationError(
                f"Ranks {ranks} have other out= each; give every process the same folder, rank 0 writes."
            )


def refuse_unequal(identity: Mapping[str, Any], team: Team) -> None:
    """Refuse processes that do not work on one and the same job.

    Raises:
        ConfigurationError: They have other weights, data, settings.
    """
    if team.size == 1:
        return
    mine = {key: checksum([value]) for key, value in identity.items() if key not in ("hooks", "loss")}
    for rank, theirs in enumerate(team.gathered(mine)):
        different = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if different:
            key = next((key for key in _EQUAL if key in different), different[0])
            fix = _EQUAL.get(key, "Call every process with the same arguments")
            raise ConfigurationError(f"Ranks {team.rank} and {rank} have other {key} each. {fix}.")


def _sharing(job: Shared, operator: CurvatureOperator, data: DataSizes, waves: int | None) -> Sharing:
    """Read off a job what decides how processes are arranged."""
    sized = keeping(job, storages.LEANEST[0]) if job.settings.basis == AUTO else job
    streams, scheduler = sized.streams(operator), operator.scheduler
    counts = {block: len(streams.probes_of(block)) for block in streams.numel}
    return Sharing(
        streams=sum(counts.values()),
        data=data,
        kept=scheduler.may_keep,
        stream_bytes=sum(count * streams.bytes_of(block) for block, count in counts.items()),
        room=spare(scheduler.working_bytes, scheduler.plan.budget, operator.held_bytes),
        most_groups=waves if job.independent else 1,
    )


def _refuse_idle(data: DataSizes, most: int | None, axes: Axes, team: Team) -> None:
    """Refuse an arrangement that was asked for and leaves processes without data; say so of one that was chosen."""
    pieces = len(data.spans(most))
    if pieces >= axes.data:
        return
    words = f"{axes.data} processes share the data, which has {pieces} pieces: batches cannot be cut more finely"
    if team.asked is not None:
        raise ConfigurationError(
            f"{words}. Give more batches, a loss that is a mean over samples (or returns total and weight), or fewer "
            "processes on that axis, for instance distributed='auto'."
        )
    log.warning("%s, and some of the processes have nothing to do", words)
