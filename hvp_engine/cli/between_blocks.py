"""The command off-diagonal."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from hvp_engine.cli.arguments import (
    HESSIAN,
    Arithmetic,
    Blocks,
    Check,
    HeadCurvature,
    Matrix,
    Memory,
    Microbatch,
    Out,
    Precision,
    Preconditioned,
    Quiet,
    Seed,
    Target,
)
from hvp_engine.cli.jobs import compute, show_result


def off_diagonal(
    target: Target,
    blocks: Blocks = None,
    probes: Annotated[int, typer.Option(metavar="N", help="Random vectors over all blocks.")] = 10,
    seed: Seed = 0,
    operator: Matrix = HESSIAN,
    precondition: Preconditioned = False,
    precision: Arithmetic = Precision.fp32,
    microbatch: Microbatch = None,
    memory: Memory = None,
    head_curvature: HeadCurvature = True,
    check: Check = True,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Say how much of the matrix lies between its blocks.

    It takes two blocks or more that share no entry. The same command again resumes an interrupted run.
    """
    from hvp_engine.api import off_diagonal as call  # noqa: PLC0415 - keeps the other commands quick to start

    found, folder = compute(
        partial(call, blocks=None),  # which it refuses with what to give
        target,
        "off-diagonal",
        blocks=blocks,
        probes=probes,
        seed=seed,
        operator=operator,
        precondition=precondition,
        precision=precision,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        check=check,
        out=out,
        quiet=quiet,
    )
    show_result(found, folder, "off diagonal")
