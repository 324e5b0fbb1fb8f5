"""The command eigsh."""

from __future__ import annotations

from enum import Enum
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


class _Which(str, Enum):
    LM, LA, SA, BE = "LM", "LA", "SA", "BE"


def eigsh(
    target: Target,
    blocks: Blocks = None,
    k: Annotated[int, typer.Option("--k", metavar="N", help="Pairs per block.")] = 10,
    which: Annotated[
        _Which,
        typer.Option(metavar="NAME", help="LM: largest in magnitude; LA: largest; SA: smallest; BE: from both ends."),
    ] = _Which.LM,
    tolerance: Annotated[
        float, typer.Option(metavar="NUMBER", help="Largest residual, relative to the largest eigenvalue.")
    ] = 1e-3,
    maxiter: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most products per block. Default: 100 per pair, and at least 1,000."),
    ] = None,
    vectors: Annotated[bool, typer.Option(help="Keep the eigenvectors.")] = True,
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
    """Find eigenpairs of the blocks of your model.

    The same command again resumes an interrupted run.
    """
    from hvp_engine.api import eigsh as call  # noqa: PLC0415 - keeps the other commands quick to start

    found, folder = compute(
        call,
        target,
        "eigsh",
        blocks=blocks,
        k=k,
        which=which,
        tolerance=tolerance,
        maxiter=maxiter,
        vectors=vectors,
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
    show_result(found, folder, "eigsh")
