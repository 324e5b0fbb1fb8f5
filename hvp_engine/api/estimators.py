"""Numbers of blocks from products with random vectors: ``trace``, ``diagonal``, ``norms``; and exact ``gradients``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from torch import nn

from hvp_engine.api.building import builder
from hvp_engine.blocks import BlockSpec
from hvp_engine.jobs.diagonals import DiagonalJob
from hvp_engine.jobs.norms import NormsJob
from hvp_engine.jobs.runner import run
from hvp_engine.jobs.sampled import Method, Sampling
from hvp_engine.jobs.traces import TraceJob
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.gradients import gradient_norms
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.results.diagonals import Diagonals
from hvp_engine.results.norms import GradientNorm, Norms
from hvp_engine.results.traces import Traces


@torch.inference_mode(False)
def trace(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    products: int | None = None,
    tolerance: float | None = None,
    method: Method = "xtrace",
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
) -> Traces:
    """Estimate the trace of every block, with 95 % bars.

    All blocks are multiplied in the same sweeps, several random vectors of each at once. A block of no more parameters
    than it may have products is multiplied out, and its trace is exact; one whose matrix has a smaller rank than it
    gets vectors is found out, and is exact to rounding, too.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`.
        data: As for :func:`slq`.
        products: Products per block, at least 8; with ``tolerance`` the most that a block may get, 200 if None.
        tolerance: Half-width of the 95 % bar, relative to the trace, at which a block leaves the sweeps. None takes all
            products; where these are None, too, 0.05. Traces near zero never get there; ``manifest["not_reached"]``
            names them.
        method: ``"xtrace"`` (Epperly, Tropp & Webber 2024) multiplies random vectors and a basis of their products,
            and leaves each vector out in turn: where eigenvalues decay its error falls much faster than with the root
            of the number of products. It keeps half as many vectors as it takes products. ``"hutchinson"`` averages
            v'Hv over random vectors of the sphere and keeps none; for flat spectra its error is 1.4 times smaller.
        seed: Decides the random vectors; the same seed gives the same bits on one machine.
        operator: The matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`.
        precondition: As for :func:`slq`.
        precision: Arithmetic of the products: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes for graphs and vectors; None takes 80 % of what is free.
        head_curvature: As for :func:`slq`.
        check: Test the second derivative for symmetry and against finite differences first.
        progress: True shows progress, False hides it, None shows it on a terminal.
        out: Run folder. Results and checkpoints go there; the same call again resumes, or returns what is complete.

    Returns:
        An :class:`Estimate` per block; ``summary()`` writes them as a table.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    settings = _settings(seed, precision, microbatch, memory, head_curvature, check)
    job = TraceJob(settings, Sampling(products, tolerance, method))
    build = builder(model, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
    return run(job, build, out, progress)


@torch.inference_mode(False)
def diagonal(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    products: int | None = None,
    tolerance: float | None = None,
    method: Method = "xtrace",
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
) -> Diagonals:
    """Estimate the diagonal of every block, with a 95 % bar for every entry.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`.
        data: As for :func:`slq`.
        products: As for :func:`trace`.
        tolerance: Error of the whole diagonal at which a block leaves the sweeps: twice the length of all standard
            errors, relative to the length of the diagonal. None as for :func:`trace`.
        method: ``"xtrace"`` takes XDiag, which leaves one vector out as XTrace does, and keeps as many vectors as it
            takes products; ``"hutchinson"`` averages ``v * Hv`` over random signs (Bekas, Kokiopoulou & Saad 2007).
        seed: As for :func:`trace`.
        operator: As for :func:`trace`.
        precondition: As for :func:`slq`.
        precision: As for :func:`trace`.
        microbatch: As for :func:`trace`.
        memory: As for :func:`trace`.
        head_curvature: As for :func:`trace`.
        check: As for :func:`trace`.
        progress: As for :func:`trace`.
        out: As for :func:`trace`.

    Returns:
        Per block the entries with their bars, flat; ``diagonals[block].tensors()`` shapes them like the parameters.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    settings = _settings(seed, precision, microbatch, memory, head_curvature, check)
    job = DiagonalJob(settings, Sampling(products, tolerance, method))
    build = builder(model, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
    return run(job, build, out, progress)


@torch.inference_mode(False)
def norms(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = "parameter",
    *,
    data: Iterable[Any] | None = None,
    products: int | None = None,
    tolerance: float | None = None,
    method: Method = "xtrace",
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
) -> Norms:
    """Estimate trace and Frobenius norm of every block from the same products, beside the length of its gradient.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`; one per parameter if not given.
        data: As for :func:`slq`.
        products: As for :func:`trace`.
        tolerance: Half-width of the 95 % bars of both numbers, relative to the number, at which a block leaves the
            sweeps. None as for :func:`trace`.
        method: As for :func:`trace`, but that ``"xtrace"`` keeps as many vectors as it takes products.
        seed: As for :func:`trace`.
        operator: As for :func:`trace`; the gradient is that of the objective, as it is.
        precondition: As for :func:`slq`, of the matrix.
        precision: As for :func:`trace`.
        microbatch: As for :func:`trace`.
        memory: As for :func:`trace`.
        head_curvature: As for :func:`trace`.
        check: As for :func:`trace`.
        progress: As for :func:`trace`.
        out: As for :func:`trace`.

    Returns:
        Per block its size and the three numbers, two of them with bars; ``summary()`` writes them as a table.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    settings = _settings(seed, precision, microbatch, memory, head_curvature, check)
    job = NormsJob(settings, Sampling(products, tolerance, method))
    build = builder(model, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
    return run(job, build, out, progress)


@torch.inference_mode(False)
def gradients(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    precision: Precision = "fp32",
    microbatch: int | None = None,
    memory: int | None = None,
) -> dict[str, GradientNorm]:
    """Measure the gradient of the objective that all other calls are about, block by block.

    Ragged batches, ignored tokens and tied weights count as they do for :func:`slq`; sums over the data are in float64.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`.
        data: As for :func:`slq`.
        precision: Arithmetic of the gradients of single micro-batches.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes; None takes 80 % of what is free.

    Returns:
        ``(norm, numel)`` per block.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    settings = JobSettings(precision=precision, microbatch=microbatch, memory=memory)
    made = builder(model, loss, blocks, data=data, settings=settings)()
    return {name: GradientNorm(norm, made.numel[name]) for name, norm in gradient_norms(made).items()}


def _settings(
    seed: int, precision: Precision, microbatch: int | None, memory: int | None, head_curvature: bool, check: bool
) -> JobSettings:
    return JobSettings(
        steps=1,
        probes=1,
        seed=seed,
        precision=precision,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        check=check,
    )
