"""How a command runs a job of the API on a job file, whatever the job computes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import typer

from hvp_engine.cli.job_file import load_job, output_to_errors
from hvp_engine.cli.kinds import KINDS
from hvp_engine.cli.options import blocks_of, bytes_of, folder_of, precondition_of
from hvp_engine.cli.output import say

Result = TypeVar("Result")


def compute(
    call: Callable[..., Result],
    target: str,
    command: str,
    *,
    blocks: list[str] | None,
    memory: float | None,
    precondition: bool,
    out: Path | None,
    quiet: bool,
    **options: Any,
) -> tuple[Result, Path]:
    """Load a job file, run a public call on what it gives, and return the result and its run folder.

    Args:
        call: One of :mod:`hvp_engine.api`.
        target: FILE:FUNCTION.
        command: Name of the command, after which its default folders are named; empty for slq.
        blocks: ``--blocks``; where there are none and the job file asks for none, the call's own default.
        memory: ``--memory``, in GiB.
        precondition: ``--precondition``.
        out: ``--out``.
        quiet: ``--quiet``.
        options: What else the call takes; members of enumerations stand for their values.

    Raises:
        HvpEngineError: An option or the job file is wrong, or the job fails.
    """
    folder = out or folder_of(target, command)
    values = {key: value.value if isinstance(value, Enum) else value for key, value in options.items()}
    with output_to_errors():
        job = load_job(target)
        chosen = blocks_of(blocks, job)
        if chosen is not None:
            values["blocks"] = chosen
        found = call(
            job.model,
            job.loss,
            data=job.data,
            precondition=precondition_of(precondition, job, target),
            memory=bytes_of(memory),
            progress=not quiet,
            out=folder,
            **values,
        )
    return found, folder


def show_result(found: Any, folder: Path, kind: str) -> None:
    """Print a result as ``show`` does, and where it is.

    Args:
        found: The result, with a ``summary()``.
        folder: Its run folder.
        kind: Its key in :data:`hvp_engine.cli.kinds.KINDS`.
    """
    typer.echo(found.summary())
    figures = KINDS[kind].figures
    then = "draw them" if figures else "see them again"
    say(f"Results are in {folder}/; {then} with: hvp-engine {'plot' if figures else 'show'} {folder}")
