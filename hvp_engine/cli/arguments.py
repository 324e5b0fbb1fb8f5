"""The arguments and options that several commands share, under one name each."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hvp_engine.krylov.registry import AUTO, STORAGES
from hvp_engine.operators.registry import OPERATORS


class Precision(str, Enum):
    """Arithmetic of the products."""

    fp64, fp32, tf32, bf16 = "fp64", "fp32", "tf32", "bf16"


class Distribution(str, Enum):
    """Of random vectors."""

    gaussian, rademacher = "gaussian", "rademacher"


class Reorthogonalize(str, Enum):
    """Against which Lanczos vectors."""

    full, selective, none = "full", "selective", "none"


Basis = Enum("Basis", {name: name for name in (*STORAGES, AUTO)}, type=str)  # type: ignore[misc]  # as many as are registered
PLAIN_BASIS = Basis("fp32")
Operator = Enum("Operator", {name: name for name in OPERATORS}, type=str)  # type: ignore[misc]  # likewise
HESSIAN = Operator("hessian")


class Device(str, Enum):
    """Devices that can be planned for."""

    a100_80gb, a100_40gb, v100_32gb, v100_16gb = "a100-80gb", "a100-40gb", "v100-32gb", "v100-16gb"
    h100_80gb, cpu = "h100-80gb", "cpu"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as --out names it.")]
Target = Annotated[
    str,
    typer.Argument(
        metavar="FILE:FUNCTION",
        help="A Python file and a function in it, which returns (model, loss, data), or (model, loss, data, blocks), "
        "or a dict with these as keys and, if need be, 'precondition'.",
    ),
]
Blocks = Annotated[
    list[str] | None,
    typer.Option(
        "--blocks",
        metavar="BLOCKS",
        help="full, parameter, module, a parameter name, or NAME=GLOB[,GLOB...]; repeat for more. Default: what the "
        "job file asks for.",
    ),
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", help="Lanczos steps; with --tolerance the most of them. Default: 100.")
]
Probes = Annotated[
    int | None,
    typer.Option(metavar="N", help="Random vectors per block; with --tolerance the most of them. Default: 10."),
]
FirstProbe = Annotated[
    int,
    typer.Option(metavar="N", help="Number of the first one, for parts that merge joins; in jobs without a tolerance."),
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]NUMBER",
        help="Half-width of the 95 % bars to stop at: of the distribution of the eigenvalues (w1), relative to their "
        "standard deviation; or NAME=NUMBER for w1, js, trace or density; repeat for more. Default: 0.02, unless "
        "--steps or --probes say how much to do.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with numbers that are not rounded.")]
Matrix = Annotated[Operator, typer.Option("--operator", metavar="NAME", help=f"The matrix: {', '.join(OPERATORS)}.")]
Preconditioned = Annotated[
    bool,
    typer.Option(
        "--precondition",
        help="Take the matrix as an optimizer sees it, P^-1/2 H P^-1/2. P is what the job file's function returns as "
        "'precondition': an Adam or AdamW that has taken a step, or positive numbers by parameter name.",
    ),
]
Arithmetic = Annotated[
    Precision,
    typer.Option(metavar="NAME", help=f"Arithmetic of the products: {', '.join(p.value for p in Precision)}."),
]
Kept = Annotated[
    Basis,
    typer.Option(
        metavar="NAME",
        help=f"How the Lanczos vectors are kept: {', '.join(STORAGES)}; {AUTO} takes what memory allows.",
    ),
]
Microbatch = Annotated[
    int | None, typer.Option(metavar="N", help="Samples differentiated at once. Default: as many as fit.")
]
Memory = Annotated[
    float | None, typer.Option(metavar="GIB", help="Memory budget in GiB. Default: 80 % of what is free.")
]
Drawn = Annotated[
    Distribution,
    typer.Option(
        metavar="NAME", help="Of the probes: gaussian, or rademacher, which misses eigenvectors on few coordinates."
    ),
]
Orthogonal = Annotated[
    Reorthogonalize,
    typer.Option(
        metavar="NAME", help="full: against all vectors; selective: against all where it matters; none: against two."
    ),
]
HeadCurvatureTolerance = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Share of the largest trace that a token's matrix may lose by dropping improbable vocabulary entries.",
    ),
]
HeadCurvature = Annotated[bool, typer.Option(help="Form a linear head's curvature once, where that is cheaper.")]
Check = Annotated[bool, typer.Option(help="Test the second derivative before the work.")]
Distributed = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|probes=P,data=D",
        help="How the processes that torchrun started share the job; auto where it started several.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Run folder. The numbers, a manifest of how they were made and checkpoints go there. The same command "
        "with the same folder resumes what was interrupted, and shows what is complete. Default: a folder in runs/ "
        "named after file and function, and after the command where that is not slq.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the random vectors; the same seed gives the same bits.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
