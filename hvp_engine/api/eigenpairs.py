"""Eigenpairs of blocks: ``eigsh``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from torch import nn

from hvp_engine.api.building import builder
from hvp_engine.blocks import BlockSpec
from hvp_engine.jobs.eigsh import EigshJob
from hvp_engine.jobs.runner import run
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.wanted import Wanted, Which
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.results.eigensystem import Eigensystem


@torch.inference_mode(False)
def eigsh(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    k: int = 10,
    which: Which = "LM",
    tolerance: float = 1e-3,
    maxiter: int | None = None,
    vectors: bool = True,
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
) -> Eigensystem:
    """Find eigenpairs of the diagonal blocks of the Hessian, or of another curvature matrix.

    Thick-restarted Lanczos (Wu & Simon 2000) with full orthogonalisation, for all blocks at once: every sweep over the
    data multiplies one vector of every block that has not converged. Repeated eigenvalues come out as often as they are
    there: once the wanted pairs have converged, a fresh random vector is taken in, until it has brought the copies that
    are missing, or chance is left once in a thousand that there is one. Eigenvalues closer to each other than the
    tolerance are not told apart.

    Residuals are measured. The products with all Lanczos vectors were made, and give those of their combinations, the
    eigenvectors, and so the residuals. One product more, with a random combination of all eigenvectors of a block,
    confirms them all at once: where what was derived is off by the tolerance (in the Frobenius norm over all pairs)
    that is seen, but for a chance of one in a hundred; the error that is seen is part of the residuals. Where it is not
    confirmed, or the error of products is too near to the tolerance, every eigenvector is multiplied.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`.
        data: As for :func:`slq`.
        k: Pairs per block. A block of fewer parameters gives all its pairs, as dense solvers do.
        which: ``"LM"``: largest in magnitude, ``"LA"``: largest, ``"SA"``: smallest, ``"BE"``: from both ends, one more
            from the upper one where k is odd; as in ``scipy.sparse.linalg.eigsh``.
        tolerance: Largest residual ||Hx - lambda x|| of a unit vector x, relative to the largest magnitude of an
            eigenvalue of the block that was found (its norm, as a rule). SciPy takes each eigenvalue's own.
        maxiter: Most products per block, before those that measure the residuals; None takes 100 per pair, at least
            1,000. It ends in any case where more products do not lower the residuals.
        vectors: Keep the eigenvectors: k times the parameters of all blocks.
        seed: Decides the start vectors; the same seed gives the same bits on one machine.
        operator: The matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`.
        precondition: As for :func:`slq`; the vectors are those of the symmetric matrix P^-1/2 H P^-1/2.
        precision: Arithmetic of the products: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``. Residuals are not less
            than the error of a product; where that is more than the tolerance, pairs have not ``converged``.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes for graphs and vectors; None takes 80 % of what is free. A block keeps
            3 k + 10 vectors where they fit, and at least 2 k + 1 or 20: with fewer it restarts more often.
        head_curvature: As for :func:`slq`.
        check: Test the second derivative for symmetry and against finite differences first.
        progress: True shows progress, False hides it, None shows it on a terminal.
        out: Run folder. Results and checkpoints go there; the same call again resumes, or returns what is complete.

    Returns:
        Eigenpairs by block, each in ascending order of the values.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    wanted = Wanted(k, which, tolerance, maxiter, vectors)
    settings = JobSettings(
        steps=wanted.most,
        probes=1,
        seed=seed,
        precision=precision,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        check=check,
    )
    build = builder(model, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
    return run(EigshJob(settings, wanted), build, out, progress)
