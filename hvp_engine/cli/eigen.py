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
    Quiet,
    Seed,
    Target,
)
from hvp_engine.cli.job_file import load_job, output_to_errors
from hvp_engine.cli.options import blocks_of, bytes_of, folder_of
from hvp_engine.cli.output import say


class _Which(str, Enum):
    LM, LA, SA, BE = "LM", "LA", "SA", "BE"


def eigsh(
    target: Target,
    blocks: Blocks = None,
    k: Annotated[int, typer.Option("--k", help="Pairs per block.")] = 10,
    which: Annotated[_Which, typer.Option(help="Largest in magnitude, largest, smallest, both ends.")] = _Which.LM,
    tolerance: Annotated[float, typer.Option(help="Largest residual, relative to the largest eigenvalue.")] = 1e-3,
    maxiter: Annotated[int | None, typer.Option(help="Most products per block [100 per pair, at least 1,000].")] = None,
    vectors: Annotated[bool, typer.Option(help="Keep the eigenvectors.")] = True,
    seed: Seed = 0,
    operator: Matrix = HESSIAN,
    precision: Arithmetic = Precision.fp32,
    microbatch: Microbatch = None,
    memory: Memory = None,
    head_curvature: HeadCurvature = True,
    check: Check = True,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Find eigenpairs of the blocks of a model of your own; the same command again resumes an interrupted run."""
    from hvp_engine.api import eigsh as compute  # noqa: PLC0415 - keeps the other commands quick to start

    folder = out or folder_of(target)
    with output_to_errors():
        job = load_job(target)
        found = compute(
            job.model,
            job.loss,
            blocks_of(blocks, job),
            data=job.data,
            k=k,
            which=which.value,
            tolerance=tolerance,
            maxiter=maxiter,
            vectors=vectors,
            seed=seed,
            operator=operator.value,
            precision=precision.value,
            microbatch=microbatch,
            memory=bytes_of(memory),
            head_curvature=head_curvature,
            check=check,
            progress=not quiet,
            out=folder,
        )
    typer.echo(found.summary())
    say(f"Results are in {folder}/; draw them with: hvp-engine plot {folder}")
