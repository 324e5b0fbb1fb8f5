"""How a job's Lanczos vectors are kept: as asked for, or decided once and remembered."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.jobs.checkpoint import Checkpoint
from hvp_engine.krylov.registry import AUTO
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.processes.team import ALONE, Team
from hvp_engine.scheduling import storages
from hvp_engine.scheduling.waves import StreamSizes

log = logging.getLogger(__name__)


class HasStreams(Protocol):
    """What is asked of a job here."""

    settings: JobSettings

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return the sizes of the streams that the job begins with."""


JobT = TypeVar("JobT", bound=HasStreams)


def keeping(job: JobT, name: str) -> JobT:
    """Return a job that keeps its vectors in a storage."""
    kept = copy.copy(job)
    kept.settings = replace(job.settings, basis=name)
    return kept


def make_room(job: HasStreams, operator: CurvatureOperator) -> None:
    """Settle for micro-batches beside whose graph the job's vectors fit.

    Raises:
        ConfigurationError: They are to be offloaded to where they are.
        OutOfMemoryError: Not even one stream of some block fits.
    """
    if job.settings.basis != AUTO:
        storages.check_place(job.settings.lanczos.kept, on_cpu=operator.device.type == "cpu")
        operator.make_room(job.streams(operator))
        return
    *others, last = (keeping(job, name).streams(operator) for name in storages.LEANEST)
    for streams in others:
        try:
            operator.make_room(streams)
        except OutOfMemoryError:
            continue
        return
    operator.make_room(last)


def decided(
    job: JobT, operator: CurvatureOperator, budget: int, checkpoint: Checkpoint | None, team: Team = ALONE
) -> JobT:
    """Return a job that keeps its vectors as asked for, or as it did when it first ran, or as fits best now."""
    if job.settings.basis != AUTO:
        return job
    return keeping(job, team.from_first(lambda: _chosen(job, operator, budget, checkpoint)))


def _chosen(job: HasStreams, operator: CurvatureOperator, budget: int, checkpoint: Checkpoint | None) -> str:
    """Name how vectors are kept, as when the job first ran, or as fits best now."""
    known = None if checkpoint is None else checkpoint.recall("basis")
    if known is not None:
        return str(known["name"])
    name = storages.choose_basis(
        lambda name: keeping(job, name).streams(operator),
        budget,
        operator.scheduler.working_bytes,
        operator.held_bytes,
        storages.rooms(),
        on_cpu=operator.device.type == "cpu",
    )
    if checkpoint is not None:
        checkpoint.remember("basis", {"name": name})
    return name


def record(operator: CurvatureOperator, asked: HasStreams, job: HasStreams) -> dict[str, Any]:
    """Say for the manifest how the vectors of a job were kept, where that was not said."""
    kept, name = job.settings.lanczos.kept, job.settings.basis
    if asked.settings.basis != AUTO or kept is None:
        return {}
    found = {"name": name, "kept": storages.in_words(kept), "expected_loss": storages.EXPECTED_LOSS[kept.dtype]}
    if name == storages.RESIDENT[0]:
        return {"basis": found}
    note = storages.note(name, kept)
    log.info("%s", note)
    return {"basis": found, "notes": [*operator.notes, note]}
