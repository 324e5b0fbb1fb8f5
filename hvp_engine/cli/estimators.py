"""The commands trace, diagonal and norms: numbers of blocks from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
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


class _Method(str, Enum):
    xtrace, hutchinson = "xtrace", "hutchinson"


_Products = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Products per block, at least 8; with --tolerance the most that a block may get. Default: 200.",
    ),
]
_RelativeTolerance = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="Half-width of the 95 % bars to stop at, relative to the number. Default: 0.05, unless --products says "
        "how much to do.",
    ),
]
_WholeTolerance = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="Error to stop at: twice the length of the standard errors of all entries, relative to the length of the "
        "diagonal. Default: 0.05, unless --products says how much to do.",
    ),
]
_How = Annotated[
    _Method,
    typer.Option(
        metavar="NAME", help="xtrace, which gains where eigenvalues decay, or hutchinson, which keeps no vectors."
    ),
]


def _estimator(name: str, what: str, tolerance_type: object = _RelativeTolerance) -> Callable[..., None]:
    """Make the command of one of the estimators, which take the same options.

    Args:
        name: Of the command and of the call in :mod:`hvp_engine.api`.
        what: What it does, in one sentence.
        tolerance_type: Of --tolerance, with the help that says of what it is.
    """

    def command(
        target: Target,
        blocks: Blocks = None,
        products: _Products = None,
        tolerance: _RelativeTolerance = None,
        method: _How = _Method.xtrace,
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
        from hvp_engine import api  # noqa: PLC0415 - keeps the other commands quick to start

        found, folder = compute(
            getattr(api, name),
            target,
            name,
            blocks=blocks,
            products=products,
            tolerance=tolerance,
            method=method,
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
        show_result(found, folder, name)

    command.__annotations__["tolerance"] = tolerance_type
    command.__name__ = name
    command.__doc__ = f"{what}\n\nEach number has its 95 % bar. The same command again resumes an interrupted run."
    return command


trace = _estimator("trace", "Estimate the trace of every block of your model.")
diagonal = _estimator("diagonal", "Estimate the diagonal of every block of your model.", _WholeTolerance)
norms = _estimator("norms", "Estimate norms and traces of blocks, and gradient norms.")
