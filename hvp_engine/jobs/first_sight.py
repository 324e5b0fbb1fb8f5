"""A run folder as it is seen before anything is computed: whether a job can be run there, and whose it is already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvp_engine.jobs.checkpoint import begun
from hvp_engine.jobs.comparison import refuse_at_first_sight
from hvp_engine.jobs.folder import prove_usable
from hvp_engine.jobs.job import Job, ResultT, StateT
from hvp_engine.system.run_files import is_finished, read_manifest


def finished_or_usable(run: Path) -> bool:
    """Say whether a result is in a run folder; where none is, prove that one can be put there.

    A folder that holds a result need not be writable. Of several processes the first one calls this.

    Raises:
        RunFolderError: No job can be run there.
    """
    if is_finished(run):
        return True
    prove_usable(run)
    return False


def refuse_other_jobs(job: Job[StateT, ResultT], run: Path, described: Mapping[str, Any]) -> None:
    """Refuse a run folder that holds another job, by what is known of this one before its loss is evaluated.

    Args:
        job: The job.
        run: Its run folder.
        described: What is known: settings, blocks, model and data.

    Raises:
        RunFolderError: It is another job's, or damaged.
    """
    if is_finished(run):
        found = stored_identity(run)
        if not found:
            job.load(run)  # another kind's result says itself what it is
        refuse_at_first_sight(found or {}, described, run)
    elif found := begun(run):
        refuse_at_first_sight(found, described, run)


def stored_identity(run: Path) -> dict[str, Any] | None:
    """Return the identity in a finished run's manifest; None where it has none, which its own kind of job explains."""
    facts = read_manifest(run).get("run")
    identity = facts.get("identity") if isinstance(facts, dict) else None
    return identity if isinstance(identity, dict) else None
