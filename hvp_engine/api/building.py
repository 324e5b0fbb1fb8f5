"""How the public calls of jobs make the operator that was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.jobs.data_error import divide
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.operators.registry import operator_named
from hvp_engine.problem.checks import check_module
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.obstacles import unwrapped
from hvp_engine.processes.team import ALONE, Team


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


@contextlib.contextmanager
def together(distributed: str | Mapping[str, int] | None, model: nn.Module) -> Iterator[tuple[Team, nn.Module]]:
    """Work with the other processes of a job inside; give them, and the model without what DDP wraps it in.

    Args:
        distributed: As for :func:`hvp_engine.slq`.
        model: The caller's.

    Raises:
        ConfigurationError: The processes cannot be had as asked for.
        ProcessError: Another process has ended.
    """
    if distributed is None:
        yield ALONE, model
        return
    from hvp_engine.processes.joining import joined  # noqa: PLC0415 - torch.distributed takes a while to load

    check_module(model)
    plain = unwrapped(model)
    first = next(plain.parameters(), None)
    with joined(distributed, torch.device("cpu") if first is None else first.device) as team:
        yield team, plain


def divided(build: Callable[[], CurvatureOperator], groups: int) -> CurvatureOperator:
    """Make an operator whose data are divided."""
    operator = build()
    divide(operator, groups)
    return operator
