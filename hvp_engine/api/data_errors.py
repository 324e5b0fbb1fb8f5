"""How far the Hessian of some data is from that of all: ``data_error``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn

from hvp_engine.api.building import builder, divided
from hvp_engine.blocks import BlockSpec
from hvp_engine.jobs.data_error import GROUPS, DataErrorJob, settings_of
from hvp_engine.jobs.runner import run
from hvp_engine.krylov.settings import JobSettings, whole_number
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.results.data_errors import DataErrors

_MOST_GROUPS = 1_000_000


@torch.inference_mode(False)
def data_error(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any],
    groups: int = GROUPS,
    seed: int = 0,
    operator: str = "hessian",
    precondition: Precondition | None = None,
    precision: Precision = "fp32",
    microbatch: int | None = None,
    memory: int | None = None,
    check: bool = True,
    progress: bool | None = None,
    out: str | PathLike[str] | None = None,
) -> DataErrors:
    """Say how far the Hessian on these data is from the one on all data of their kind, and how many samples it takes.

    The data are cut into groups; two halves of them bracket the extreme eigenvalues of the *expected* Hessian, and the
    scatter between the groups gives bars for its trace and Frobenius norm
    (:func:`hvp_engine.results.data_error.error_of_block` has the formulas and their sources). As a pilot on a few
    samples it tells how many a job needs: ``data_error(...).samples_for(0.05)``.

    Args:
        model: The network; never changed.
        loss: As for :func:`slq`.
        blocks: As for :func:`slq`.
        data: As for :func:`slq`; at least two samples, or two batches where they cannot be cut, in an order that is
            independent of what is in them.
        groups: Into how many groups the data are cut where they suffice, at least 2; more of them know their scatter
            better, and take memory for one vector each.
        seed: Decides the probes.
        operator: The matrix, as for :func:`slq`; what is said here of the Hessian holds for every one.
        precondition: As for :func:`slq`.
        precision: Arithmetic of the products: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``.
        microbatch: Samples differentiated at once; None takes whole groups while they fit.
        memory: Budget in bytes for graphs and vectors; None takes 80 % of what is free.
        check: Test the second derivative for symmetry and against finite differences first.
        progress: True shows progress, False hides it, None shows it on a terminal.
        out: Run folder. Results and checkpoints go there; the same call again resumes, or returns what is complete.

    Returns:
        Bars by block; ``summary()`` writes them as a table.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    groups = whole_number("groups", groups, 2, most=_MOST_GROUPS)
    settings = JobSettings(seed=seed, precision=precision, microbatch=microbatch, memory=memory)
    build = builder(model, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
    return run(DataErrorJob(settings_of(settings, check=check), groups), partial(divided, build, groups), out, progress)
