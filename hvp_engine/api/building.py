"""How the public calls of jobs make the operator that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.jobs.data_error import divide, groups_of
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.operators.registry import operator_named
from hvp_engine.problem.objective import Loss


def builder(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec,
    *,
    data: Iterable[Any] | None,
    settings: JobSettings,
    operator: str = "hessian",
    precondition: Precondition | None = None,
) -> Callable[[], CurvatureOperator]:
    """Return what makes an operator for a job.

    Args:
        model: The network.
        loss: Its loss.
        blocks: The blocks.
        data: Batches.
        settings: What the job was asked for.
        operator: Name of the matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`.
        precondition: A diagonal per parameter, or an optimiser that has one; see :func:`hvp_engine.slq`.

    Raises:
        ConfigurationError: There is no operator of that name.
    """
    return partial(
        operator_named(operator),
        model,
        loss,
        blocks,
        data=data,
        precision=settings.precision,
        microbatch=settings.microbatch,
        memory=settings.memory,
        precondition=precondition,
        seed=settings.seed,
    )


def dividable(build: Callable[[], CurvatureOperator]) -> CurvatureOperator:
    """Make an operator; refuse data that do not divide before the work, not after it."""
    operator = build()
    groups_of(operator)
    return operator


def divided(build: Callable[[], CurvatureOperator], groups: int) -> CurvatureOperator:
    """Make an operator whose data are divided."""
    operator = build()
    divide(operator, groups)
    return operator
