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


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Target = Annotated[
    str, typer.Argument(metavar="FILE:FUNCTION", help="Function returning (model, loss, data), or blocks after them.")
]
Blocks = Annotated[
    list[str] | None,
    typer.Option(
        "--blocks", help="full, parameter, module, a parameter name, or NAME=GLOB[,GLOB...]; repeat for more."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Lanczos steps; with --tolerance the most of them [100].")]
Probes = Annotated[int | None, typer.Option(help="Random vectors per block; with --tolerance the most of them [10].")]
FirstProbe = Annotated[
    int, typer.Option(help="Number of the first one, without --tolerance: for parts that hvp-engine merge joins.")
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NUMBER|NAME=NUMBER",
        help="Half-width of the 95 % bars to stop at: relative to the standard deviation of the eigenvalues, or of w1, "
        "js, trace or density; repeat for more [0.02, unless --steps or --probes say how much to do].",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Matrix = Annotated[Operator, typer.Option("--operator", help="Of which matrix.")]
Arithmetic = Annotated[Precision, typer.Option(help="Arithmetic of the products.")]
Kept = Annotated[Basis, typer.Option(help="How the Lanczos vectors are kept: dtype and place; auto chooses.")]
Microbatch = Annotated[int | None, typer.Option(help="Samples differentiated at once.")]
Memory = Annotated[float | None, typer.Option(help="Memory budget in GiB.")]
HeadCurvature = Annotated[bool, typer.Option(help="Form a linear head's curvature once, where that is cheaper.")]
Check = Annotated[bool, typer.Option(help="Test the second derivative first.")]
Out = Annotated[Path | None, typer.Option(help="Run folder [default: runs/<file>-<function>].")]
Seed = Annotated[int, typer.Option(help="Seed of the random vectors.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
