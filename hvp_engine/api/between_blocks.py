"""What lies between blocks: ``off_diagonal``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from torch import nn

from hvp_engine.api.building import builder
from hvp_engine.blocks import BlockSpec
from hvp_engine.blocks.union import with_union
from hvp_engine.jobs.off_diagonal import OffDiagonalJob
from hvp_engine.jobs.runner import run
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.problem.checks import check_module
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.results.off_diagonal import OffDiagonal


@torch.inference_mode(False)
def off_diagonal(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec,
    *,
    data: Iterable[Any] | None = None,
    probes: int = 10,
    seed: int = 0,
    operator: str = "hessian",
    precondition: Precondition | None = None,
    precision: Precision = "fp32",
    microbatch: int | None = None,
    memory: int | None = None,
    head_curvature: bool = True,
    check: bool = True,
    progress: bool | None = None,
    out: str | PathLike[str] | None = None,
) -> OffDiagonal:
    """Say how much of a matrix its block diagonal misses: ``|Hv - Dv| / |Hv|`` and the cosine of Hv and Dv.

    H is the matrix over the parameters of all blocks, D what is left of it when everything between two blocks is set to
    zero, and v a random vector over all of them, uniform on the sphere. Both products are exact, and come from the same
    gradient graphs. Parameters that are in no block do not enter: they are neither in H nor in v, and ``outside``
    counts them.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`; two or more that share no entry: ``"parameter"``, ``"module"``, a mapping such as
            ``{"attention": "*.attn.*", "mlp": "*.mlp.*"}``.
        data: As for :func:`slq`.
        probes: Random vectors. Each takes one product with H and one with every block; the numbers hardly differ
            between them where there are many parameters.
        seed: Decides the vectors.
        operator: The matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`.
        precondition: As for :func:`slq`.
        precision: Arithmetic of the products: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``. A ratio below the error
            of a product, ``noise``, is rounding.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes for graphs and vectors; None takes 80 % of what is free.
        head_curvature: As for :func:`slq`.
        check: Test the second derivative for symmetry and against finite differences first.
        progress: True shows progress, False hides it, None shows it on a terminal.
        out: Run folder. Results and checkpoints go there; the same call again resumes, or returns what is complete.

    Returns:
        Means over the vectors with 95 % bars, as ``ratio`` and ``cosine``; over the rows of one block alone by its
        name; ``summary()`` writes them as a table.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    settings = JobSettings(
        steps=1,
        probes=probes,
        seed=seed,
        precision=precision,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        check=check,
    )
    check_module(model)
    build = builder(
        model,
        loss,
        with_union(model, blocks),
        data=data,
        settings=settings,
        operator=operator,
        precondition=precondition,
    )
    return run(OffDiagonalJob(settings), build, out, progress)
