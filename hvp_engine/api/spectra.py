"""Spectra of blocks: ``slq``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hvp_engine.api.building import builder, divided, together
from hvp_engine.blocks import BlockSpec
from hvp_engine.errors import HvpEngineError
from hvp_engine.jobs.adaptive_slq import AdaptiveSlqJob
from hvp_engine.jobs.data_error import GROUPS, DataErrorJob, settings_of
from hvp_engine.jobs.data_error_ahead import look_ahead
from hvp_engine.jobs.folder import located
from hvp_engine.jobs.runner import run
from hvp_engine.jobs.slq import SlqJob
from hvp_engine.krylov.probes import Distribution
from hvp_engine.krylov.settings import JobSettings, Reorthogonalize
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.processes.team import Team
from hvp_engine.results import data_errors
from hvp_engine.results.spectra import Spectra


@torch.inference_mode(False)
def slq(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    steps: int | None = None,
    probes: int | None = None,
    first_probe: int = 0,
    tolerance: float | Mapping[str, float] | None = None,
    seed: int = 0,
    distribution: Distribution = "gaussian",
    operator: str = "hessian",
    precondition: Precondition | None = None,
    precision: Precision = "fp32",
    reorthogonalize: Reorthogonalize = "full",
    basis: str = "fp32",
    microbatch: int | None = None,
    memory: int | None = None,
    head_curvature: bool = True,
    head_curvature_tolerance: float = 0.0,
    check: bool = True,
    data_error: bool = False,
    distributed: str | Mapping[str, int] | None = None,
    progress: bool | None = None,
    out: str | PathLike[str] | None = None,
) -> Spectra:
    """Stochastic Lanczos quadrature of the diagonal blocks of the Hessian, or of another curvature matrix.

    For every block b, ``probes`` random unit vectors start ``steps`` Lanczos steps each on H_bb; the eigenvalues of the
    tridiagonal matrices and the squared first components of their eigenvectors are a Gauss quadrature of the block's
    spectral density (Golub & Meurant 2010; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019). All streams
    (blocks x probes) advance together and share one gradient graph per micro-batch.

    How many products that takes is found out as it goes, block by block, unless ``steps`` or ``probes`` are given
    without ``tolerance``: a block leaves the sweeps when its error bars are small enough, gets a few single products
    for its trace and norm, and more probes where steps are not what is missing. A block of so few parameters that its
    whole matrix costs less is done exactly. ``manifest["adaptive"]`` says what every block took, and what was not
    reached.

    Args:
        model: The network; never changed.
        loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None. It returns the mean over its batch as a
            scalar, or ``(total, weight)``; :mod:`hvp_engine.losses` has ready ones.
        blocks: ``None``/``"full"``, ``"parameter"``, ``"module"``, parameter names, a mapping of names to globs, or
            :class:`hvp_engine.Block` objects.
        data: Re-iterable of batches (tensors, or tuples, mappings or objects that hold them), the same in every pass.
            Data without a length may have 10,000 batches and take 15 seconds to read; more is taken for endless.
        steps: Lanczos steps m; streams of blocks smaller than m end earlier, exactly. With ``tolerance`` the most that
            a stream may take; None takes 100.
        probes: Random vectors per block. With ``tolerance`` the most that a block may get; None takes 10.
        first_probe: Number of the first of them; without ``tolerance`` alone. Several jobs so share the probes of one:
            the same vectors to the bit, and coefficients to the rounding that depends on how many vectors go through
            the network at once. :func:`merge` joins their run folders.
        tolerance: Half-width of the 95 % error bars at which a block is done. A number is that of the distribution of
            its eigenvalues in Wasserstein-1 distance, relative to their standard deviation; a mapping has it by name:
            ``{"w1": 0.02}``, ``{"js": 0.01}`` (every Jensen-Shannon divergence), ``{"trace": 0.01}`` (relative) or
            ``{"density": 0.1}`` (decades), or several. None takes 0.02 where neither ``steps`` nor ``probes`` is given,
            and exactly these where one is.
        seed: Decides the probes, and what an operator draws; the same seed gives the same bits on one machine.
        distribution: ``"gaussian"`` (normalised: uniform on the sphere) or ``"rademacher"`` (signs). Signs are blind to
            eigenvectors on few coordinates: of one on two of them they missed the eigenvalue in 46 of 100 runs, the
            sphere in none. Their variance is no smaller in practice, and the error bars are made for the sphere.
        operator: The matrix: ``"hessian"``, ``"ggn"`` (generalised Gauss-Newton), ``"residual"`` (the Hessian without
            that), ``"fisher"`` (targets drawn from the model's predictions), ``"empirical_fisher"`` (the data's
            targets, by samples) or ``"empirical_fisher_tokens"``: the names in
            :data:`hvp_engine.operators.registry.OPERATORS`.
        precondition: A diagonal P: the spectra are those of P^-1/2 H P^-1/2, which are those of P^-1 H. Positive
            numbers by parameter name, each a tensor of the parameter's shape or one number; or a ``torch.optim``
            optimiser of the model (Adam, AdamW, NAdam, Adamax) that has taken a step, with P = sqrt(v_hat) + eps as it
            divides its step. None leaves the matrix as it is.
        precision: Arithmetic of the products: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``.
        reorthogonalize: ``"full"`` keeps all Lanczos vectors, measures in every step how orthogonal they are, and
            admits no ghost eigenvalues. ``"selective"`` keeps them too, estimates instead, and reads them only where
            the loss of orthogonality would harm the coefficients: the same spectra to the rounding of the precision,
            for fewer reads. ``"none"`` keeps two; the manifest says from which step on there are ghosts.
        basis: How the vectors are kept: ``"fp32"``, ``"bf16"`` (half the memory) or ``"int8"`` (8 bits with scales, a
            quarter), all of them in the device's memory; with ``-mmap`` behind it in a temporary file (in ``TMPDIR``),
            with ``-offload``, on a GPU, in the host's memory. ``"auto"`` takes the most accurate one in memory that has
            room for full waves, else one elsewhere, and says so (``manifest["basis"]``); a resumed job keeps it.
            ``precision="fp64"`` keeps fp64 in the same place.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes for graphs and vectors; None takes 80 % of what is free.
        head_curvature: Form the curvature of a linear head once where that is cheaper than passing through the head in
            every product (exact to rounding, see :mod:`hvp_engine.operators.head.store`); False always passes through.
        head_curvature_tolerance: Admit more than rounding, so that it is formed faster: vocabulary entries of little
            probability are dropped while no token's matrix loses more than this share of the largest one's trace. The
            manifest has the share reached and the entries kept. 0 drops none.
        check: Test the second derivative for symmetry and against finite differences first.
        data_error: Give bars for the choice of data too, as ``spectra.data_error`` and in ``summary()``: see
            :func:`data_error`. About 32 products more per block. What forbids them (too little memory, data that do
            not divide, a half of them without weight) is said before the spectra are computed. Should they fail
            nevertheless, in one process, the spectra are returned without them, with a RuntimeWarning that says why;
            in several the error is raised, and a run folder has the spectra.
        distributed: ``"auto"`` shares the job with the other processes that ``torchrun`` started, or that have made a
            process group of ``torch.distributed``: all of them make this call, with the same model and all the data,
            and each gets the result. ``{"probes": P, "data": D}`` says how, P groups with streams of their own of D
            processes with parts of the data; ``"auto"`` chooses. A model in DistributedDataParallel is taken out of it.
            The coefficients are those of one process to rounding, and the same to the bit with as many processes.
            None works in this process alone.
        progress: True shows progress, False hides it, None shows it on a terminal; of several processes rank 0 does.
        out: Run folder. Results and checkpoints go there; the same call again resumes, or returns what is complete,
            with any number of processes.

    Returns:
        One spectrum per block.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    settings = JobSettings(
        steps=steps,  # type: ignore[arg-type]  # numbers once they are settings
        probes=probes,  # type: ignore[arg-type]
        first_probe=first_probe,
        tolerance=tolerance,
        seed=seed,
        distribution=distribution,
        precision=precision,
        reorthogonalize=reorthogonalize,
        basis=basis,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        head_curvature_tolerance=head_curvature_tolerance,
        check=check,
    )
    with together(distributed, model) as (team, plain):
        build = builder(plain, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
        if not data_error:
            return _spectra(settings, build, out, progress, team)
        folder = None if out is None else located(out)
        return _with_data_error(build, _Asked(settings, folder, progress, team))


class _Asked(NamedTuple):
    """How a call wants its jobs to be run."""

    settings: JobSettings
    folder: Path | None
    progress: bool | None
    team: Team


def _with_data_error(build: Callable[[], CurvatureOperator], asked: _Asked) -> Spectra:
    """Compute spectra and their bars for the choice of data; what forbids these is said before the spectra."""
    settings, folder, progress, team = asked
    errors, build_divided = DataErrorJob(settings_of(settings, check=False)), partial(divided, build, GROUPS)
    look_ahead(errors, build_divided, folder, progress, team)
    spectra = _spectra(settings, build, folder, progress, team)
    try:
        inside = None if folder is None else folder / data_errors.FOLDER
        found = run(errors, build_divided, inside, progress, team)
    except HvpEngineError as error:
        if team.size > 1:
            raise  # the other processes wait for this one, and have to be told
        warnings.warn(
            f"The spectra are complete, their bars for the choice of data are not: {error} They are returned without "
            "these bars; hvp_engine.data_error computes them alone.",
            RuntimeWarning,
            stacklevel=4,
        )
        return spectra
    return Spectra(spectra.values(), spectra.manifest, found)


def _spectra(
    settings: JobSettings,
    build: Callable[[], CurvatureOperator],
    out: str | PathLike[str] | None,
    progress: bool | None,
    team: Team,
) -> Spectra:
    targets = settings.targets
    if targets is None:
        return run(SlqJob(settings), build, out, progress, team)
    return run(AdaptiveSlqJob(settings, targets), build, out, progress, team)
