"""Whether a job of bars for the choice of data can run, seen before the spectra that they go with are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.jobs import basis
from hvp_engine.jobs.data_error import DataErrorJob, groups_in, refuse_weightless
from hvp_engine.jobs.first_sight import finished_or_usable, refuse_other_jobs
from hvp_engine.jobs.identity import config_of, describe
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.processes.team import Team
from hvp_engine.results.data_error import HALVES, halves
from hvp_engine.results.data_errors import FOLDER
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.phases import phase, shows_phases


@shows_phases
@failures_in_words("the job of the bars for the choice of data was looked at")
def look_ahead(
    job: DataErrorJob,
    build: Callable[[], CurvatureOperator],
    run: Path | None,
    progress: bool | None,
    team: Team,
) -> None:
    """Refuse bars beside spectra that could not be had once these are complete.

    Args:
        job: The job of the bars.
        build: Makes its operator, whose data are divided; it is made for this alone.
        run: Run folder of the spectra; None where there is none.
        progress: As for :func:`hvp_engine.jobs.runner.run`.
        team: The processes; all of them call this at once.

    Raises:
        ConfigurationError: The data do not divide, or one half of them has no weight.
        OutOfMemoryError: Its vectors do not fit.
        RunFolderError: The folder of the spectra, or that of the bars inside, holds another job or cannot be used.
    """
    folders = [] if run is None else [run, run / FOLDER]
    complete = [team.from_first(partial(finished_or_usable, folder)) for folder in folders]
    if folders and all(complete):
        return
    operator = build()
    if folders:
        described = {**config_of(job, operator), **describe(operator)}
        team.from_first(partial(refuse_other_jobs, job, folders[-1], described))
        if complete[-1]:
            return
    try:
        basis.make_room(job, operator)
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"For data_error=True: {error} Or leave out data_error=True.") from error
    if operator.objective.declares_weight:  # else samples are the weights
        refuse_weightless(operator.scheduler.within_memory(lambda: _some_weight(operator)))


@phase("looking at the weights of the data")
def _some_weight(operator: CurvatureOperator) -> list[float]:
    """Evaluate what it takes of the data to see that each half has some weight, and return what was seen."""
    objective, groups = operator.objective, groups_in(operator)
    of_group, weights = halves(len(groups.samples)), [0.0] * HALVES
    with objective.arithmetic():
        for micro in operator.scheduler.microbatches():
            half = int(of_group[groups.of(micro.key)])
            if weights[half] <= 0:
                with objective.looking(micro.batch):
                    weights[half] += objective.evaluate(micro.batch)[1]
            if min(weights) > 0:
                break
    return weights
